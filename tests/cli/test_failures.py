import errno

import pytest
import torch

from lit_hf.cli.failures import explained
from lit_hf.errors import is_out_of_memory
from lit_hf.training.callbacks.in_hand import BatchInHand, InHand

BATCH = InHand("training batch 3 of epoch 1, step 3", {"input_ids": (8, 64), "labels": (8,)})


def config(model=None, data=None):
    return {
        "data": {"batch_size": 8, "batch_tokens": None, "eval_batch_size": None, "max_length": None, **(data or {})},
        "model": {"gradient_checkpointing": False, "adapter": None, "quantization": None, **(model or {})},
        "trainer": {"accumulate_grad_batches": 1},
    }


def at(now=BATCH, evaluates=False):
    in_hand = BatchInHand()
    in_hand.now, in_hand.evaluates = now, evaluates
    return in_hand


def allocation_that_fails():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    return caught.value


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            allocation_that_fails,
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4611686018427387904",
        ),
        (lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB."), "Tried to allocate 20 GiB"),
        (lambda: RuntimeError("CUDA error: out of memory"), "CUDA error: out of memory"),
        (lambda: MemoryError("Unable to allocate 9 TiB"), "Unable to allocate 9 TiB"),
        (lambda: OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory"),
    ],
)
def test_memory_that_is_not_there_is_told_with_the_batch_and_the_keys_to_lower(error, said):
    problem = explained(error(), at(), config())
    assert problem.what.startswith("out of memory in training batch 3 of epoch 1, step 3 (input_ids 8 x 64, labels 8).")
    assert said in problem.what
    for part in (
        "set model.gradient_checkpointing: true",
        "lower data.batch_size (8), and raise trainer.accumulate_grad_batches (1) by as much",
        "lower data.max_length",
        "train an adapter (model.adapter)",
    ):
        assert part in problem.cure


def test_what_is_set_already_is_not_advised():
    settings = config({"gradient_checkpointing": True, "adapter": {}}, {"batch_tokens": 4096, "max_length": 128})
    cure = explained(MemoryError(), at(), settings).cure
    assert cure == (
        "To need less: lower data.batch_tokens (4,096); lower data.max_length (128); "
        "quantize the base (model.quantization)."
    )


def test_in_validation_it_is_the_batches_of_validation_that_are_lowered():
    cure = explained(MemoryError(), at(evaluates=True), config(data={"eval_batch_size": 64})).cure
    assert (
        cure == "To need less: lower data.eval_batch_size (64); lower data.max_length (now as long as the model takes)."
    )


def test_without_a_batch_it_says_what_was_done():
    problem = explained(MemoryError(), BatchInHand(), config())
    assert problem.what == "out of memory in loading the model."


def test_a_lost_worker_is_told():
    told = "DataLoader worker (pid 123) is killed by signal: Killed. "
    problem = explained(RuntimeError(told), at(InHand("making the first batch", {})), config())
    assert problem.where == "data.num_workers"
    assert problem.what == "a process that prepares batches was killed (signal Killed), in making the first batch."
    ended = explained(RuntimeError("DataLoader worker (pid(s) 1, 2) exited unexpectedly"), at(), config())
    assert ended.what.startswith("a process that prepares batches ended")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.ENOENT, "no"), ValueError("memory")])
def test_other_failures_are_not_explained(error):
    assert explained(error, at(), config()) is None
    assert not is_out_of_memory(error)


def test_a_worker_that_does_not_answer_is_lost():
    making = at(InHand("making the batch after training batch 1 of epoch 1", {}))
    assert explained(ConnectionResetError(104, "reset"), making, config()).where == "data.num_workers"
    assert explained(ConnectionResetError(104, "reset"), at(), config()) is None
