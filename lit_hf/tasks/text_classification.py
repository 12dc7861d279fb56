"""Stub; being written."""

from typing import Any, Literal

from lit_hf.task import Task


class TextClassification(Task):
    """Classify."""

    auto_class = "AutoModelForSequenceClassification"
    pipeline_tag = "text-classification"
    peft_task_type = "SEQ_CLS"

    def __init__(
        self,
        text: str | list[str] = "text",
        label: str = "label",
        labels: list[str] | None = None,
        kind: Literal["single_label", "multi_label", "regression"] = "single_label",
    ) -> None:
        self.text = text

    @property
    def input_columns(self) -> list[str]:
        """Inputs."""
        return ["text"]

    @property
    def target_columns(self) -> list[str]:
        """Targets."""
        return ["label"]

    def encode(self, examples):
        """Encode."""
        return {}

    def predict(self, model, batch):
        """Predict."""
        return []
