from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from benchmarks.measuring import Mark, Memory, OutOfTime, StepClock, figures, resident_peak
from tests.conftest import ROOT


def marks(*seconds: float) -> list[Mark]:
    return [Mark(second, 10 * (step + 1), 1000 * (step + 1)) for step, second in enumerate(seconds)]


def test_time_runs_from_the_third_step_s_end_to_the_last_one_s() -> None:
    result = figures(marks(100.0, 150.0, 200.0, 201.0, 203.0, 204.0))

    assert result["seconds"] == 4.0
    assert result["tokens_per_second"] == 30 / 4.0  # of the three steps that were measured
    assert result["step_seconds"] == 1.0


def test_all_steps_count_as_work_and_for_the_memory() -> None:
    result = figures(marks(1.0, 2.0, 3.0, 4.0))

    assert (result["steps"], result["tokens"], result["memory"]) == (4, 40, 4000)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_run_that_is_no_longer_than_the_warm_up_has_no_speed(steps: int) -> None:
    result = figures(marks(*map(float, range(steps))))

    assert (result["seconds"], result["tokens_per_second"], result["step_seconds"]) == (None, None, None)
    assert result["steps"] == steps


def test_the_peak_of_memory_is_read_in_bytes() -> None:
    assert resident_peak("Name:\tpython\nVmPeak:\t 900 kB\nVmHWM:\t 12 kB\nVmRSS:\t 8 kB\n") == 12 * 1024


def test_memory_counts_from_where_it_was_made() -> None:
    # in a process of its own, which has no memory left over from other tests
    script = """
import torch
from benchmarks.measuring import Memory
before = torch.ones(2**24)
memory = Memory(on_gpu=False)
known = memory.peak()
block = torch.ones(2**23)
print(known, (memory.peak() - known) / block.nbytes)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    known, share = map(float, done.stdout.split())
    assert known < 2**20
    assert 0.9 <= share < 1.1


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.weight * input_ids.sum()


def train(clock: StepClock, steps: int) -> None:
    model = Model()
    clock.count(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(steps):
        model(input_ids=torch.ones(2, 3), attention_mask=torch.tensor([[1, 1, 1], [1, 0, 0]])).backward()
        with torch.no_grad():
            model(input_ids=torch.ones(2, 3))  # what is not trained on does not count
        optimizer.step()


def test_each_optimizer_step_is_noted_with_the_tokens_that_are_no_padding() -> None:
    clock = StepClock(Memory(on_gpu=False), limit=60.0)
    handle = clock.start()
    train(clock, steps=2)
    handle.remove()

    assert [mark.tokens for mark in clock.marks] == [4, 8]


def test_tokens_that_are_known_beforehand_are_not_counted() -> None:
    clock = StepClock(Memory(on_gpu=False), limit=60.0, tokens_by_step=[7, 5])
    handle = clock.start()
    train(clock, steps=2)
    handle.remove()

    assert [mark.tokens for mark in clock.marks] == [7, 12]


def test_a_run_that_takes_too_long_is_ended_and_keeps_what_it_measured() -> None:
    clock = StepClock(Memory(on_gpu=False), limit=0.0)
    handle = clock.start()
    with pytest.raises(OutOfTime):
        train(clock, steps=5)
    handle.remove()

    assert len(clock.marks) == 2
