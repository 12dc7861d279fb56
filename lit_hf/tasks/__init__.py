"""The tasks: one file each, with all that differs by task and nothing else."""

from lit_hf.tasks.causal_lm import CausalLM
from lit_hf.tasks.chat import Chat
from lit_hf.tasks.embedding import Embedding
from lit_hf.tasks.masked_lm import MaskedLM
from lit_hf.tasks.multiple_choice import MultipleChoice
from lit_hf.tasks.preference import Preference
from lit_hf.tasks.question_answering import QuestionAnswering
from lit_hf.tasks.reward_model import RewardModel
from lit_hf.tasks.seq2seq import Seq2Seq
from lit_hf.tasks.text_classification import TextClassification
from lit_hf.tasks.token_classification import TokenClassification

__all__ = [
    "CausalLM",
    "Chat",
    "Embedding",
    "MaskedLM",
    "MultipleChoice",
    "Preference",
    "QuestionAnswering",
    "RewardModel",
    "Seq2Seq",
    "TextClassification",
    "TokenClassification",
]
