"""The tasks: one file each, with all that differs by task and nothing else."""

from lit_hf.tasks.text_classification import TextClassification

__all__ = ["TextClassification"]
