"""The tasks: one file each, with all that differs by task and nothing else."""

from lit_hf.tasks.chat import Chat
from lit_hf.tasks.question_answering import QuestionAnswering
from lit_hf.tasks.text_classification import TextClassification
from lit_hf.tasks.token_classification import TokenClassification

__all__ = ["Chat", "QuestionAnswering", "TextClassification", "TokenClassification"]
