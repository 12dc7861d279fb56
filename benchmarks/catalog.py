"""All workloads, by name."""

from __future__ import annotations

from benchmarks.workloads import (
    chat,
    curves,
    dpo,
    gpu,
    packed_lm,
    qlora,
    seq2seq,
    text_classification,
    token_classification,
)
from benchmarks.workloads.base import Workload


def _by_name(*workloads: Workload) -> dict[str, Workload]:
    return {workload.name: workload for workload in workloads}


ON_CPU = _by_name(
    text_classification.WORKLOAD,
    token_classification.WORKLOAD,
    seq2seq.WORKLOAD,
    chat.WORKLOAD,
    chat.PACKED,
    chat.BFLOAT16,
    packed_lm.WORKLOAD,
    packed_lm.COMPILED,
    qlora.WORKLOAD,
    dpo.WORKLOAD,
)

CURVES = _by_name(*curves.WORKLOADS)

ON_GPU = _by_name(*gpu.WORKLOADS)


def find(name: str) -> Workload:
    """Return the workload of a name."""
    return {**ON_CPU, **CURVES, **ON_GPU}[name]
