"""Who trains: a module per peer with a function `train(workload, prepared, clock, folder)`.

It trains the workload's checkpoint on its rows while the clock listens, and writes the trained model to the folder.
"""

from __future__ import annotations

MODULES = {
    "lit_hf": "lit_hf",
    "hf_trainer": "hf_trainer",
    "hf_trainer_grouped": "hf_trainer",
    "trl": "trl",
    "trl_grouped": "trl",
    "trl_packed": "trl",
    "lightning": "lightning",
    "litgpt": "litgpt",
    "accelerate": "accelerate",
    "loop": "loop",
}
"""The module of each peer; where several share one, the name's end is its variant."""

IN_LIT_HF_S_ORDER = ("lit_hf", "loop")
"""Those that train on lit-hf's own batches; others make their own of the same rows."""
