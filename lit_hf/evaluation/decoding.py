"""How text is generated: settings, checked before a model is loaded; room for the answer; what an export says of it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from lit_hf.errors import Problem, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lit_hf.task import Batch

logger = logging.getLogger("lit_hf")

GREEDY = {"do_sample": False}

_NOT_SETTINGS = {"transformers_version", "_from_model_config"}

_LENGTHS = {"max_new_tokens", "max_length"}
_SAMPLING = {"temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}
_BEAMS = {"early_stopping", "length_penalty"}


def generation_problems(where: str, settings: Mapping[str, Any]) -> Iterator[Problem]:
    """Find settings that `generate` does not know, and values that it refuses or would ignore.

    Args:
        where: The config key, or the option, that the settings come from.
        settings: Arguments of `transformers.GenerationConfig`.
    """
    known = set(vars(GenerationConfig())) - _NOT_SETTINGS
    if unknown := [name for name in settings if name not in known]:
        for name in unknown:
            close = nearest(name, known).partition(" There is:")[0]
            cure = close if close.startswith("Did you mean") else "See transformers.GenerationConfig."
            yield Problem(f"{where}.{name}", "generation has no such setting.", cure)
        return
    if settings.get("num_return_sequences") not in (None, 1):
        yield Problem(f"{where}.num_return_sequences", "a row gets one text.", "Leave it out.")
    try:
        with _quiet_checks():
            GenerationConfig(**{**settings, "num_return_sequences": 1}).validate(strict=True)
    except (ValueError, TypeError) as error:
        text = " ".join(str(error).split()).removeprefix("GenerationConfig is invalid: - ")
        yield Problem(where, text.partition(" If you're using")[0])


def superseded(earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> set[str]:
    """Return the settings that have no meaning any more once others are put over them.

    A length replaces the other way to say it; temperature and the like are for sampling, a length penalty is for beams.
    """
    merged = {**earlier, **settings}
    names: set[str] = set()
    if _LENGTHS & settings.keys():
        names |= _LENGTHS
    if merged.get("do_sample") is not True:
        names |= _SAMPLING
    if merged.get("num_beams") in (None, 1):
        names |= _BEAMS
    return names - settings.keys()


# room for the answer


def with_length(settings: Mapping[str, Any], default: int, limit: int | None = None) -> dict[str, Any]:
    """Return settings that say how long the text is at most: as they do, or else by default.

    Args:
        settings: Arguments of `generate`.
        default: New tokens where they have neither `max_new_tokens` nor `max_length`.
        limit: Tokens of prompt and answer together; the default takes half of it at most.
    """
    said = {name: value for name, value in settings.items() if name not in _LENGTHS or value is not None}
    if _LENGTHS & said.keys():
        return said
    return {**said, "max_new_tokens": default if limit is None else max(min(default, limit // 2), 1)}


class Room(NamedTuple):
    """How many tokens there may be.

    Attributes:
        limit: Of prompt and answer together.
        new_tokens: Of the answer.
    """

    limit: int
    new_tokens: int


def room(settings: Mapping[str, Any], limit: int) -> Room:
    """Return the room that settings leave within a model's limit; `max_length` is prompt and answer together."""
    if "max_new_tokens" in settings:
        return Room(limit, settings["max_new_tokens"])
    total = min(settings["max_length"], limit)
    return Room(total, total)


def fit_prompt(ids: list[int], limit: int, new_tokens: int) -> list[int]:
    """Return the end of a prompt that leaves room for the answer: all of it, or half of the limit where it has none."""
    return ids[-longest_prompt(limit, new_tokens) :]


def longest_prompt(limit: int, new_tokens: int) -> int:
    """Return how many tokens of a prompt `fit_prompt` keeps."""
    return limit - new_tokens if new_tokens < limit else max(limit // 2, 1)


# generation


def stop_tokens(
    tokenizer: PreTrainedTokenizerBase, config: GenerationConfig | None, turn_end: int | None = None
) -> dict[str, Any]:
    """Return at which tokens generation ends: those of the model, the tokenizer's, and the end of a turn."""
    given = getattr(config, "eos_token_id", None)
    ids = [*(given if isinstance(given, list) else [given]), tokenizer.eos_token_id, turn_end]
    stops = [token for token in dict.fromkeys(ids) if token is not None]
    return {"eos_token_id": stops or None, "pad_token_id": tokenizer.pad_token_id}


def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: Batch,
    settings: Mapping[str, Any],
    turn_end: int | None = None,
) -> list[str]:
    """Return how a decoder goes on from each prompt, without the prompt, and within the tokenizer's limit.

    Args:
        model: The decoder.
        tokenizer: The tokenizer of the prompts.
        batch: `input_ids` and `attention_mask`, padded on the left.
        settings: Arguments of `generate`, with a length.
        turn_end: The token that ends a turn of a conversation, if one does.
    """
    length = batch["input_ids"].shape[1]
    limit, new_tokens = room(settings, int(tokenizer.model_max_length))
    arguments = {
        **stop_tokens(tokenizer, model.generation_config, turn_end),
        **{name: value for name, value in settings.items() if name not in _LENGTHS},
        "max_new_tokens": max(min(new_tokens, limit - length), 1),
    }
    tokens = generate(model, {name: batch[name] for name in ("input_ids", "attention_mask")}, arguments)
    return tokenizer.batch_decode(tokens[:, length:], skip_special_tokens=True)


def generate(model: PreTrainedModel, inputs: Batch, settings: Mapping[str, Any]) -> Any:
    """Return the tokens that `generate` writes: one sequence a row, whatever the checkpoint's own settings say."""
    replaced = dict.fromkeys(_LENGTHS) if _LENGTHS & settings.keys() else {}
    return cast(Any, model).generate(**inputs, **{**replaced, **settings, "num_return_sequences": 1})


def write_generation_config(
    folder: Path, tokenizer: PreTrainedTokenizerBase | None, settings: Mapping[str, Any], turn_end: int | None = None
) -> None:
    """Put a task's settings over those of an exported model, so that plain `generate` writes the same text.

    What the settings make meaningless goes: transformers refuses to write it. Where it finds fault with more than that,
    the model's own settings stay, and a warning says so: nobody should lose a trained model to them.

    Args:
        folder: The folder of the model.
        tokenizer: The tokenizer whose end token generation stops at; None leaves it to the model.
        settings: Arguments of `generate`.
        turn_end: The token that ends a turn of a conversation, if one does.
    """
    there = (folder / GENERATION_CONFIG_NAME).is_file()
    try:
        config = GenerationConfig.from_pretrained(folder) if there else GenerationConfig()
        if tokenizer is not None:
            settings = {**stop_tokens(tokenizer, config, turn_end), **settings}
        gone: Collection[str] = {*superseded(config.to_dict(), settings), "num_return_sequences"}
        config.update(**{**settings, **dict.fromkeys(gone)})
        config.save_pretrained(folder)
    except ValueError as error:
        what = " ".join(str(error).split())
        logger.warning("%s says nothing of how the task generates: %s", GENERATION_CONFIG_NAME, what)


@contextmanager
def _quiet_checks() -> Iterator[None]:
    """Keep transformers from warning of what is raised as an error anyway."""
    logger = logging.getLogger("transformers.generation.configuration_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
