"""How `lit-hf predict` has text generated: settings over the task's own, and words as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lit_hf.errors import InputError, Problem, raise_problems

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lit_hf.inference.predictor import Predictor
    from lit_hf.task import Task


def set_generation(task: Task, settings: dict[str, Any], max_new_tokens: int | None) -> None:
    """Put settings of the command line over those that the task was trained with.

    Args:
        task: The task.
        settings: Arguments of `transformers.GenerationConfig`.
        max_new_tokens: The commonest one of them, by itself.

    Raises:
        InputError: If the task generates no text, or there is no such setting or value.
    """
    if max_new_tokens is not None:
        settings = {**settings, "max_new_tokens": max_new_tokens}
    if not settings:
        return
    if task.generation is None:
        what = f"{type(task).__name__} does not generate text."
        raise InputError(Problem("--generation", what, "Leave out --generation and --max_new_tokens."))
    from lit_hf.evaluation.decoding import generation_problems, superseded

    dropped = superseded(task.generation, settings)
    generation = {name: value for name, value in task.generation.items() if name not in dropped} | settings
    raise_problems(generation_problems("--generation", generation))
    task.generation = generation


def can_stream(model: PreTrainedModel, task: Task) -> bool:
    """Say whether words can be shown as they are generated: with beams, none is final before the last."""
    if task.generation is None or model.generation_config is None:
        return False
    beams = task.generation.get("num_beams", model.generation_config.num_beams)
    return (beams or 1) == 1


def stream(predictor: Predictor, row: dict[str, Any]) -> None:
    """Write the text for one row to standard output, word by word."""
    from transformers import TextStreamer

    task = predictor.task
    streamer = TextStreamer(task.tokenizer, skip_prompt=True, skip_special_tokens=True)
    task.generation = {**(task.generation or {}), "streamer": streamer}
    for _ in predictor.predict([row]):
        pass
