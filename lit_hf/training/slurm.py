"""Jobs of SLURM: Lightning finds their ranks, and what saves and resumes a run is ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.plugins.environments import ClusterEnvironment, SLURMEnvironment


def own_environment(plugins: Sequence[Any], strategy: Any) -> list[ClusterEnvironment]:
    """Return the environment of a job that does not requeue itself, if this is in one and the config names no other.

    Lightning's own would save a checkpoint beside the run's when the job's time is nearly over, within a step, too,
    and whatever starts in that folder next would take it.

    Args:
        plugins: Of the config.
        strategy: Of the config, by name or as an object.
    """
    is_given = any(isinstance(one, ClusterEnvironment) for one in plugins)
    if is_given or getattr(strategy, "cluster_environment", None) is not None or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)]
