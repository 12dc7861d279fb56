"""Mixing: the rows of several sources become one split, after their columns were made to agree."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from datasets import Dataset, interleave_datasets

from lit_hf.data.alignment import align
from lit_hf.data.inner_columns import with_inner_columns
from lit_hf.data.sources import SAMPLING_SEED, Source, Split, concatenate, load_splits
from lit_hf.errors import InputError, Problem, nearest, raise_problems

logger = logging.getLogger("lit_hf")

Mixing = Literal["concatenate", "interleave"]
Stopping = Literal["first_exhausted", "all_exhausted"]

WINDOW_ROWS = 4096
"""Rows of a streamed source that are read together, unless the config says otherwise."""


def unused_settings(
    source: Source | Sequence[Source], mixing: Mixing, stopping: Stopping, window_rows: int
) -> Iterator[str]:
    """Yield what was set of how rows are read, and does nothing with these sources."""
    sources = [source] if isinstance(source, Source) else source
    is_alone = len(sources) == 1
    if is_alone and mixing != "concatenate":
        yield f"data.mixing ({mixing}): there is one source"
    if is_alone and sources[0].weight != 1:
        yield f"data.source.weight ({sources[0].weight:g}): there is one source"
    if stopping != "first_exhausted" and (is_alone or mixing == "concatenate"):
        yield f"data.stopping ({stopping}): no rows are drawn from several sources (data.mixing: interleave)"
    if window_rows != WINDOW_ROWS and not any(one.streaming for one in sources):
        yield f"data.window_rows ({window_rows}): no source is streamed"


def load_mixed(
    sources: Sequence[Source],
    names: Sequence[str],
    columns: Sequence[str],
    optional: Sequence[str] = (),
    mixing: Mixing = "concatenate",
    stopping: Stopping = "first_exhausted",
) -> dict[str, Split]:
    """Load splits of several sources, and make one of each; validation and test rows are always concatenated.

    Args:
        sources: Where the rows come from; each is renamed, cut and limited on its own.
        names: The splits that are wanted.
        columns: The task's columns: they must be in all sources, and are all that is kept.
        optional: Columns that are kept where they are.
        mixing: Whether the training rows follow each other, or are drawn from the sources by their weights.
        stopping: Whether drawing ends as soon as a source has no more rows, or goes on, with rows of the smaller
            sources repeated, until all rows were drawn.

    Returns:
        The splits by name, without those that no source has.

    Raises:
        InputError: If a source cannot be read, or a column is missing or of another kind than in the other sources.
    """
    raise_problems(check_sources(sources, mixing))
    loaded = _load(sources, names)
    mixed: dict[str, Split] = {}
    problems: list[Problem] = []
    for name in names:
        having = {index: splits[name] for index, splits in enumerate(loaded) if name in splits}
        try:
            parts = list(having.values())
            agree(parts, columns, optional)
        except InputError as error:
            problems += error.problems
            continue
        if name == "train" and mixing == "interleave" and parts:
            mixed[name] = _interleave(parts, [sources[index].weight for index in having], stopping)
        elif parts:
            mixed[name] = concatenate(parts, "data.source")
        if parts:
            _tell_shares(name, list(having), parts, mixed[name])
    raise_problems(problems)
    return mixed


def _load(sources: Sequence[Source], names: Sequence[str]) -> list[dict[str, Split]]:
    loaded: list[dict[str, Split]] = []
    problems: list[Problem] = []
    for index, source in enumerate(sources):
        try:
            loaded.append(load_splits(source, names, f"data.source[{index}]"))
        except InputError as error:
            problems += error.problems
    raise_problems(problems)
    return loaded


def check_sources(sources: Sequence[Source], mixing: Mixing) -> Iterator[Problem]:
    """Find settings of sources that do not go together."""
    if not sources:
        yield Problem("data.source", "the list is empty.", "Name at least one source.")
    for index, source in enumerate(sources):
        if not source.streaming and any(other.streaming for other in sources):
            cure = "Stream all of the sources, or none."
            yield Problem(f"data.source[{index}].streaming", "the rows of other sources are streamed.", cure)
        if mixing == "concatenate" and source.weight != 1:
            cure = "Set data.mixing: interleave, or leave the weight out."
            yield Problem(f"data.source[{index}].weight", "where sources are concatenated all rows count alike.", cure)


def _interleave(parts: Sequence[Split], weights: Sequence[float], stopping: Stopping) -> Split:
    """Draw rows by weight, as `datasets` does it: numbers of rows are drawn, so that each row keeps its place."""
    joined = concatenate(parts, "data.source")
    bounds = np.cumsum([0, *(len(part.rows) for part in parts)])
    numbers = [Dataset.from_dict({"row": np.arange(*pair)}) for pair in pairwise(bounds)]
    drawn = interleave_datasets(
        numbers, [weight / sum(weights) for weight in weights], seed=SAMPLING_SEED, stopping_strategy=stopping
    )
    return joined.take(np.asarray(drawn["row"][:]))


def _tell_shares(name: str, sources: Sequence[int], parts: Sequence[Split], mixed: Split) -> None:
    bounds = np.cumsum([0, *(len(part.rows) for part in parts)])
    counts, _ = np.histogram(np.arange(bounds[-1]) if mixed.indices is None else mixed.indices, bounds)
    shares = ", ".join(f"{count:,} of data.source[{index}]" for index, count in zip(sources, counts, strict=True))
    logger.info("%s: %s rows, %s", name, f"{len(mixed.rows):,}", shares)


def agree(parts: Sequence[Split], columns: Sequence[str], optional: Sequence[str]) -> None:
    """Give the parts the task's columns alone, each of the same feature in all of them.

    Raises:
        InputError: If a column is missing in a part, or of another kind than in the others.
    """
    for part in parts:
        part.rows = with_inner_columns(part.rows, [*columns, *optional])
    raise_problems(_missing(part, column) for part in parts for column in columns if column not in part.rows.features)
    wanted = list(dict.fromkeys([*columns, *optional]))
    for part in parts:
        part.rows = part.rows.select_columns([column for column in wanted if column in part.rows.features])
    there = [column for column in wanted if any(column in part.rows.features for part in parts)]
    raise_problems(problem for column in there for problem in align(parts, column))


def _missing(part: Split, column: str) -> Problem:
    source = part.key.partition("]")[0] + "]"
    what = f"{part.place(0)} has no column {column!r}, which the task reads."
    return Problem(part.key, what, f"Map it: {source}.columns. {nearest(column, part.rows.column_names)}")
