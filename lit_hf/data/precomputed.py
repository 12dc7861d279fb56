"""Columns that a model adds to encoded rows, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable

import numpy as np
from datasets import Dataset
from filelock import FileLock

from lit_hf.data.batching import BatchLoader
from lit_hf.data.cache import cache_folder
from lit_hf.data.encoding import fingerprint
from lit_hf.data.order import BatchOrder
from lit_hf.task import Batch, Task
from lit_hf.writing import write_atomically

logger = logging.getLogger("lit_hf")

Columns = Callable[[Iterable[Batch]], dict[str, list[float]]]
"""Computes columns of the rows of batches, in their order."""


def with_columns(
    encoded: Dataset, rows: Dataset, task: Task, name: str, order: BatchOrder, compute: Columns, key: str
) -> Dataset:
    """Return encoded rows with columns that are computed of their batches, or were before.

    Args:
        encoded: The encoded rows.
        rows: The rows that they were encoded from.
        task: The task that encoded them.
        name: The split's name, for the log.
        order: Which of them are computed together; every row comes in it once.
        compute: Computes the columns.
        key: Stands for everything that they depend on beside the encoded rows.
    """
    digest = hashlib.sha256(f"{fingerprint(rows, task)} {key}".encode()).hexdigest()[:32]
    file = cache_folder("precomputed") / f"{digest}.json"
    with FileLock(f"{file}.lock"):
        reused = file.is_file()
        if not reused:
            computed = compute(BatchLoader(encoded, task.collator(), order))
            back = np.argsort(np.concatenate(list(order)))
            write_atomically(
                file, json.dumps({column: np.asarray(values)[back].tolist() for column, values in computed.items()})
            )
        columns = json.loads(file.read_text(encoding="utf-8"))
    for column, values in columns.items():
        encoded = encoded.add_column(column, values)
    how = "reused from the cache" if reused else "computed with the model as it is before training"
    logger.info("%s: %s %s", name, ", ".join(columns), how)
    return encoded
