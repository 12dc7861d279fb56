"""The best and the last checkpoint of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lit_hf.run import RunFolder


class BestAndLast(ModelCheckpoint):
    """Keeps a run's best and last checkpoints, saved after each validation.

    Args:
        run: Where to.
        monitor: The logged metric that tells the best; None keeps the newest as the best.
        mode: `max` or `min`, whichever is better.
    """

    def __init__(self, run: RunFolder, monitor: str | None, mode: str) -> None:
        super().__init__(
            dirpath=run.checkpoints,
            filename=run.best.stem,
            monitor=monitor,
            mode=mode,
            save_last=True,
            enable_version_counter=False,
        )

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        super()._save_topk_checkpoint(trainer, monitor_candidates)
        # Lightning 2.6 saves the last one only in a step that saved something: a run whose metric got no better
        # would resume from its best epoch and do the later ones again.
        self._last_global_step_saved = trainer.global_step

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what was best so far, also where the run's folder has been moved: Lightning would forget it."""
        folder = Path(str(self.dirpath))

        def here(path: str) -> str:
            return str(folder / Path(path).name) if path else path

        moved = {
            "dirpath": str(folder),
            "best_model_path": here(state_dict["best_model_path"]),
            "kth_best_model_path": here(state_dict["kth_best_model_path"]),
            "best_k_models": {here(path): score for path, score in state_dict["best_k_models"].items()},
        }
        super().load_state_dict({**state_dict, **moved})
