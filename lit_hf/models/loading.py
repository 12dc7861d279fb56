"""From a checkpoint or a config to a `transformers` model; what is wrong with it is said before its weights load."""

from __future__ import annotations

import copy
import difflib
import hashlib
import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_hf.errors import InputError, Problem, nearest
from lit_hf.hub import load_problem
from lit_hf.models.attention import attention_problems, unavailable
from lit_hf.models.damage import damage_problems, damaged
from lit_hf.models.packed_attention import PACKED, packing_problems
from lit_hf.models.quantization import is_quantized, prepare, spare, stored_quantization

if TYPE_CHECKING:
    from transformers.utils.quantization_config import QuantizationConfigMixin

    from lit_hf.task import Task

log = logging.getLogger(__name__)


@dataclass
class Base:
    """The base model: a checkpoint, or a config that is trained from scratch.

    Attributes:
        checkpoint: Hub id or local folder; None trains from scratch.
        revision: Branch, tag or commit on the Hub.
        config: A model config with its `model_type`, for training from scratch.
        dtype: Type of the weights: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own.
        attention: Attention implementation (`eager`, `sdpa`, ...); None leaves the choice to transformers.
        trust_remote_code: Run Python code that comes with the checkpoint.
        quantization: How to quantize the weights as they load.
        packing: Whether training rows hold several documents, which the attention keeps apart.
        added_tokens: Tokens that the tokenizer may have beyond the checkpoint's vocabulary.
    """

    checkpoint: str | None = None
    revision: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    attention: str | None = None
    trust_remote_code: bool = False
    quantization: QuantizationConfigMixin | None = None
    packing: bool = False
    added_tokens: int = 0

    @cached_property
    def pretrained_config(self) -> PreTrainedConfig:
        """The model's config, read from the checkpoint or made from `config`; no weights.

        Raises:
            InputError: If there is no such checkpoint or model type, or the config has keys that it does not know.
        """
        if self.checkpoint is None:
            return _config_from_scratch(dict(self.config))
        try:
            return AutoConfig.from_pretrained(
                self.checkpoint, revision=self.revision, trust_remote_code=self.trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise InputError(load_problem("model.checkpoint", self.checkpoint, "model", error)) from error

    @property
    def fingerprint(self) -> str:
        """What identifies the model that training starts from: its config, and its commit on the Hub or its weights."""
        config = copy.copy(self.pretrained_config)
        config.name_or_path = ""  # a folder may be moved
        text = f"{getattr(config, '_commit_hash', None)} {config.to_json_string(use_diff=False)}"
        sha = hashlib.sha256(text.encode())
        for path in sorted(Path(self.checkpoint or "").glob("*.safetensors")) if self.checkpoint else ():
            sha.update(_sampled(path))
        return sha.hexdigest()[:16]

    @property
    def stored_quantization(self) -> QuantizationConfigMixin | None:
        """How the checkpoint's weights are quantized already; None if they are not."""
        return stored_quantization(self.pretrained_config)

    @property
    def quantized(self) -> QuantizationConfigMixin | None:
        """How the weights are quantized: as `quantization` says, or in the checkpoint already; None if they are not."""
        return self.quantization or self.stored_quantization

    @property
    def torch_dtype(self) -> torch.dtype | str:
        """The dtype as torch's own object, or `auto`."""
        return self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)

    @property
    def weights_dtype(self) -> str:
        """Type of the weights by name, where `auto` is the checkpoint's own: `float32`, `bfloat16`, `float16`."""
        own = getattr(self.pretrained_config, "dtype", None) if self.checkpoint is not None else None
        return str(own or torch.float32).removeprefix("torch.") if self.dtype == "auto" else self.dtype

    def skeleton(self, task: Task) -> PreTrainedModel:
        """Return the model on the meta device: all its modules, none of its weights.

        Raises:
            InputError: If the architecture cannot do the task.
        """
        with torch.device("meta"):
            return self._initialise(task)

    def task_config(self, task: Task) -> PreTrainedConfig:
        """Return a copy of the config with the task's labels in it, and the tokenizer's vocabulary if from scratch."""
        values = self.pretrained_config.to_dict() | task.model_kwargs()
        if self.checkpoint is None:
            values |= _tokenizer_values(task.tokenizer, self.config.get("vocab_size") or 0)
            if self.pretrained_config.is_encoder_decoder:
                given = {key: self.config[key] for key in _DECODER_KEYS if key in self.config}
                values |= _decoder_values(self.pretrained_config, task.tokenizer) | given
        config = type(self.pretrained_config).from_dict(values)
        config.name_or_path = self.checkpoint or ""
        return config

    def build(self, task: Task, whole: Collection[str] = ()) -> tuple[PreTrainedModel, list[str]]:
        """Load or initialise the model for a task, in training mode.

        Args:
            task: The task.
            whole: Names of modules, or ends of them, that are not quantized where others are, as they train in full.

        Returns:
            The model, and the names of the weights that are new because the checkpoint has none for them.

        Raises:
            InputError: If the checkpoint is damaged or does not fit the task.
        """
        if self.checkpoint is None:
            return self._initialise(task).train(), []
        model, new = self._load(task, self._placement(task, whole))
        if quantized := {name for name in _owners(new) if is_quantized(model.get_submodule(name))}:
            del model  # what is new trains in full, and which that is has only now been found
            model, new = self._load(task, self._placement(task, {*whole, *quantized}))
        if self.quantized is not None:
            model = prepare(model)
        # from_pretrained leaves the model in evaluation mode and Lightning keeps it there: dropout would be off
        return model.train(), new

    def _initialise(self, task: Task) -> PreTrainedModel:
        """Return the model with random weights, on torch's current default device."""
        if not self._fits(task):
            raise InputError(self._misfit(task))
        try:
            return self._auto_class(task).from_config(
                self.task_config(task),
                trust_remote_code=self.trust_remote_code,
                attn_implementation=self._attention,
                dtype=torch.float32 if self.dtype == "auto" else self.torch_dtype,
            )
        except (ImportError, ValueError) as error:
            raise InputError(self._build_problem(error)) from error

    def _build_problem(self, error: Exception) -> Problem:
        text = " ".join(str(error).split())
        if self.attention is not None and "attention" in text.lower():
            return unavailable(self.attention, error)
        return Problem("model.config" if self.checkpoint is None else "model.checkpoint", text)

    def _placement(self, task: Task, whole: Collection[str]) -> dict[str, Any]:
        """Return how quantized weights load: on the device where they are to stay, as some are not moved after."""
        if self.quantized is None:
            return {}
        placement: dict[str, Any] = {"device_map": {"": torch.get_default_device()}}
        if self.quantization is not None:
            placement["quantization_config"] = spare(self.quantization, self.skeleton(task), whole)
        return placement

    def _load(self, task: Task, placement: dict[str, Any]) -> tuple[PreTrainedModel, list[str]]:
        try:
            model, report = self._auto_class(task).from_pretrained(
                self.checkpoint,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
                dtype=self.torch_dtype,
                attn_implementation=self._attention,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # a head for other labels is a new head, and is reported as such
                output_loading_info=True,
                **placement,
                **task.model_kwargs(),
            )
            return model, sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
        except SafetensorError as error:
            raise InputError(damaged(str(self.checkpoint), error)) from error
        except (OSError, ValueError) as error:
            raise InputError(load_problem("model.checkpoint", str(self.checkpoint), "model", error)) from error

    def _auto_class(self, task: Task) -> Any:
        return getattr(transformers, task.auto_class)

    @property
    def _attention(self) -> str | None:
        # another one that the config names keeps documents apart too: transformers makes masks for it from positions
        return PACKED if self.packing and self.attention is None else self.attention

    @property
    def longest_input(self) -> int | None:
        """The longest input in tokens, or None where positions have no fixed limit."""
        return max_positions(self.pretrained_config)

    def problems(self, task: Task) -> Iterator[Problem]:
        """Find what is wrong between config, task and tokenizer, without loading weights."""
        yield from attention_problems(self.attention)
        if not self._fits(task):
            yield self._misfit(task)
        elif self.packing:
            yield from self._packing_problems(task)
        yield from self._direction_problems(task)
        yield from self._label_problems(task)
        yield from self._output_problems(task)
        yield from self._vocabulary_problems(task)
        yield from damage_problems(self.checkpoint)

    def _vocabulary_problems(self, task: Task) -> Iterator[Problem]:
        words, declared = len(task.tokenizer), self.config.get("vocab_size")
        where, vocabulary, cure = "model.config.vocab_size", declared, "Leave it out: the tokenizer sets it."
        if self.checkpoint is not None:
            vocabulary = self.pretrained_config.get_text_config().vocab_size + self.added_tokens
            where, cure = "data.tokenizer", "Use the tokenizer of the checkpoint: leave data.tokenizer.checkpoint out."
        if vocabulary is not None and words > vocabulary:
            what = f"the tokenizer has {words:,} tokens, the model's vocabulary only {vocabulary:,}."
            yield Problem(where, what, cure)

    def _packing_problems(self, task: Task) -> Iterator[Problem]:
        if self.pretrained_config.model_type in _POSITIONS_FROM_PADDING:
            what = f"a {self.pretrained_config.model_type!r} model's positions do not start at 0 in packed documents."
            yield Problem("data.packing", what, "Leave it out.")
            return
        plain = copy.copy(self)
        plain.packing = False
        yield from packing_problems(plain.skeleton(task), own_attention=self.attention is None)

    def _fits(self, task: Task) -> bool:
        config = self.pretrained_config
        mapping = self._auto_class(task)._model_mapping
        remote = self.trust_remote_code and task.auto_class in (getattr(config, "auto_map", None) or {})
        return remote or type(config) in mapping

    def _misfit(self, task: Task) -> Problem:
        known = sorted({config.model_type for config in self._auto_class(task)._model_mapping})
        name = self.pretrained_config.model_type
        return Problem(
            "model.checkpoint" if self.checkpoint else "model.config",
            f"a {name!r} model cannot do {task.pipeline_tag} ({task.auto_class} has no {name!r}).",
            f"Models that can, among others: {', '.join(_examples(known))}.",
        )

    def _direction_problems(self, task: Task) -> Iterator[Problem]:
        """Find a model that would read what it is to predict, or that needs a second text to answer at all."""
        config, where = self.pretrained_config, "model.checkpoint" if self.checkpoint else "model.config"
        encoder = type(config) in transformers.AutoModelForMaskedLM._model_mapping and not config.is_encoder_decoder
        if task.auto_class == "AutoModelForCausalLM" and encoder and getattr(config, "is_decoder", None) is False:
            cure = "Take a decoder (GPT-2, Llama, Qwen), or the task MaskedLM."
            if self.checkpoint is None:
                cure += " To train it as a decoder from scratch: model.config.is_decoder: true."
            what = (
                f"a {config.model_type!r} model reads in both directions, so it would see the tokens it is to predict."
            )
            yield Problem(where, what, cure)
        if task.auto_class == "AutoModel" and config.is_encoder_decoder:
            what = (
                f"a {config.model_type!r} model is an encoder with a decoder, and {task.pipeline_tag} needs one alone."
            )
            yield Problem(where, what, "Take an encoder (BERT, RoBERTa, MPNet) or a decoder.")

    def _output_problems(self, task: Task) -> Iterator[Problem]:
        limit, longest = self.longest_input, (task.generation or {}).get("max_new_tokens", 0)
        if self.pretrained_config.is_encoder_decoder and limit is not None and longest > limit:
            what = f"{longest:,} tokens are more than the model can write: {limit:,}."
            yield Problem("task.generation.max_new_tokens", what, "Set it, or task.max_target_length, to that or less.")

    def _label_problems(self, task: Task) -> Iterator[Problem]:
        wanted = task.model_kwargs().get("num_labels")
        declared = self.config.get("num_labels") if self.checkpoint is None else None
        if declared is not None and wanted is not None and declared != wanted:
            names = ", ".join(task.labels or [])
            yield Problem(
                "model.config.num_labels",
                f"{declared} labels are asked for, but the data has {wanted}: {names}.",
                "Leave num_labels out: the task sets it.",
            )


def _owners(names: Iterable[str]) -> set[str]:
    """Return the modules that hold weights of these names."""
    return {name.rpartition(".")[0] for name in names}


def _sampled(path: Path, parts: int = 64, size: int = 4096) -> bytes:
    """Return pieces from all over a file, its start and its end among them: enough to tell other weights, at once."""
    length = path.stat().st_size
    with path.open("rb") as file:
        pieces = [f"{path.name} {length}".encode()]
        for part in range(parts):
            file.seek(max(length - size, 0) * part // (parts - 1))
            pieces.append(file.read(size))
    return b"".join(pieces)


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return the longest text in tokens that a model takes, or None where its positions have no fixed limit."""
    config = config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or getattr(config, "relative_attention_num_buckets", None):
        return None
    # RoBERTa and its kin count positions from the padding id on, so that two of the rows are never used
    offset = config.pad_token_id + 1 if config.model_type in _POSITIONS_FROM_PADDING else 0
    return limit - offset


_POSITIONS_FROM_PADDING = frozenset(
    {"camembert", "data2vec-text", "esm", "ibert", "longformer", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"}
)


def _examples(model_types: list[str]) -> list[str]:
    familiar = ("bert", "modernbert", "roberta", "deberta-v2", "llama", "qwen3", "gemma3_text", "gpt2", "t5", "bart")
    return [name for name in familiar if name in model_types] or model_types[:8]


def _config_from_scratch(values: dict[str, Any]) -> PreTrainedConfig:
    model_type = values.pop("model_type", None)
    if model_type is None:
        raise InputError(
            Problem(
                "model",
                "there is no base model.",
                "Give model.checkpoint (Hub id or folder), or model.config with a model_type to train from scratch.",
            )
        )
    if model_type not in transformers.CONFIG_MAPPING:
        raise InputError(
            Problem("model.config.model_type", f"there is no model type {model_type!r}.", _close(model_type))
        )
    known = AutoConfig.for_model(model_type)
    names = {*known.to_dict(), *known.attribute_map, "num_labels"}
    if unknown := [key for key in values if key not in names]:
        raise InputError(
            *(
                Problem(f"model.config.{key}", f"a {model_type} config has no such key.", nearest(key, names))
                for key in unknown
            )
        )
    return AutoConfig.for_model(model_type, **values)


def _close(model_type: str) -> str:
    close = difflib.get_close_matches(model_type, transformers.CONFIG_MAPPING, n=3)
    return f"Did you mean {' or '.join(close)}?" if close else "See the model types of transformers' AutoConfig."


def _tokenizer_values(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> dict[str, Any]:
    """Return the special tokens, and the number of all; a vocabulary may have more, to be a round number."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return {"vocab_size": max(len(tokenizer), vocabulary), **ids}


_DECODER_KEYS = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "decoder_vocab_size")


def _decoder_values(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the tokens by which a decoder starts and ends: the tokenizer's, in the roles that the model type gives.

    BART starts with its end token and forces it at the end, Marian and T5 start with padding.
    """
    default = type(config)()
    values: dict[str, Any] = {"decoder_start_token_id": tokenizer.pad_token_id}
    for key in _DECODER_KEYS[:3]:
        given = getattr(default, key, None)
        roles = [role for role in ("eos_token_id", "bos_token_id") if getattr(default, role, None) == given]
        if given is not None and given != default.pad_token_id and roles:
            own = getattr(tokenizer, roles[0])
            values[key] = tokenizer.pad_token_id if own is None and key == "decoder_start_token_id" else own
    if hasattr(default, "decoder_vocab_size"):
        values["decoder_vocab_size"] = len(tokenizer)
    return values
