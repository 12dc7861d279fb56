"""What the failures of libraries in the middle of a training mean, and what to do about them."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lit_hf.errors import Problem, is_out_of_memory
from lit_hf.training.callbacks.in_hand import BatchInHand

_LOST_WORKER = re.compile(r"DataLoader worker \(pid.*?(?:exited unexpectedly|killed by signal: (\w+))")


def explained(error: Exception, at: BatchInHand, config: Mapping[str, Any]) -> Problem | None:
    """Return what a failure of a training means; None where nothing is known of its kind.

    Args:
        error: The failure.
        at: What the run was at.
        config: The whole config as plain values.
    """
    if is_out_of_memory(error):
        lines = str(error).strip().splitlines()
        said = f" ({type(error).__name__}: {_shortened(lines[0])})" if lines else ""
        cure = "To need less: " + "; ".join(_smaller(at.evaluates, config)) + "."
        return Problem("", f"out of memory in {at.now}.{said}", cure)
    lost = _LOST_WORKER.search(str(error))
    # the first that is seen of it may be that it does not answer any more
    if lost or (isinstance(error, ConnectionError | EOFError) and at.now.doing.startswith("making")):
        how = f"was killed (signal {lost[1]})" if lost and lost[1] else "ended"
        what = f"a process that prepares batches {how}, in {at.now}."
        cure = "Most often the machine is short of memory: give fewer, or 0 (then there are no such processes)."
        return Problem("data.num_workers", what, cure)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = str(error.filename or config["output_dir"])
        return Problem(where, f"the disk is full, in {at.now}.", "Make room.")
    return None


def _smaller(evaluates: bool, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys to change, those that a run may resume with first."""
    data, model, trainer = config["data"], config["model"], config["trainer"]
    longest = f"lower data.max_length ({data['max_length'] or 'now as long as the model takes'})"
    if evaluates:
        yield f"lower data.eval_batch_size ({data['eval_batch_size'] or 'now twice data.batch_size'})"
        yield longest
        return
    if not model["gradient_checkpointing"]:
        yield "set model.gradient_checkpointing: true"
    if data["batch_tokens"]:
        yield f"lower data.batch_tokens ({data['batch_tokens']:,})"
    else:
        more = f"raise trainer.accumulate_grad_batches ({trainer['accumulate_grad_batches']}) by as much"
        yield f"lower data.batch_size ({data['batch_size']}), and {more}"
    yield longest
    if model["adapter"] is None:
        yield "train an adapter (model.adapter)"
    elif model["quantization"] is None:
        yield "quantize the base (model.quantization)"


def _shortened(line: str) -> str:
    """Return a line of torch's without where in its own sources it comes from."""
    return re.sub(r"^\[enforce fail at .*?\] .*?\. ", "", line)[:200].rstrip(".")
