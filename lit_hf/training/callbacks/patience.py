"""Early stopping whose patience is the config's, also in a run that resumes."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import EarlyStopping


class StopOnPatience(EarlyStopping):
    """Stops as Lightning's own does; a run that resumes keeps its count of validations, not its earlier patience."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back the best score and the count."""
        super().load_state_dict({**state_dict, "patience": self.patience})
