"""Between the batches of a run nothing asks for a tensor's numbers, for which a GPU would have to be waited for."""

from __future__ import annotations

import json
import traceback

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lit_hf.cli.main import main
from lit_hf.training.callbacks.nonfinite import StopOnNonFinite
from lit_hf.training.callbacks.spikes import LossSpikes
from tests.losses.test_waiting import Unasked

ADAPTER = {"class_path": "peft.LoraConfig", "init_args": {"r": 2, "target_modules": "all-linear"}}
OF_OTHERS = ("find_packed_sequence_indices",)
"""transformers looks once a batch whether its positions are those of several documents."""

asked: list[str] = []


def note(func):
    """Keep what was asked, and by whom."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
    if not any(frame.name in OF_OTHERS for frame in frames):
        places = [f"{frame.filename}:{frame.lineno}" for frame in frames if "/torch/" not in frame.filename]
        asked.append(f"{func}: {places[-3:]}")


class Asked(TorchDispatchMode):
    """Notes operations whose result depends on numbers that a device would have to be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        try:
            return Unasked().__torch_dispatch__(func, types, args, kwargs)
        except AssertionError:
            note(func)
            return func(*args, **(kwargs or {}))


class Read(TorchFunctionMode):
    """Notes what reads a tensor past those operations, and what makes one of numbers: a GPU is waited for, too."""

    READING = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.cpu, torch.tensor)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.READING:
            note(func)
        return func(*args, **(kwargs or {}))


class Watch(Callback):
    """Watches from the third batch to the last one; what looks for bad losses reads them after that.

    Lightning makes room for a value when it is logged first.
    """

    def __init__(self) -> None:
        self.modes = [Asked(), Read()]

    def on_train_start(self, trainer, pl_module):
        guards = [one for one in trainer.callbacks if isinstance(one, StopOnNonFinite | LossSpikes)]
        assert len(guards) == 2 and trainer.num_training_batches > 5
        for guard in guards:
            guard.every_n_batches = 100

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2:
            for mode in self.modes:
                mode.__enter__()
        elif batch_idx == trainer.num_training_batches - 1:
            for mode in reversed(self.modes):
                mode.__exit__(None, None, None)


class Ask(Callback):
    """Asks in three ways."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 3:
            float(outputs["mean_loss"]), outputs["mean_loss"].tolist(), torch.tensor(1.0)


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Fit a language model."""
    monkeypatch.chdir(tmp_path)
    asked.clear()
    rows = [{"text": f"the film was {'very ' * (number % 3)}good"} for number in range(80)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}

    def run(*callbacks, adapter=False, **trainer):
        config = {
            "task": {"class_path": "CausalLM", "init_args": {"block_length": 16}},
            "model": {"config": {"model_type": "llama", **shape}, **({"adapter": ADAPTER} if adapter else {})},
            "data": {
                "source": {"train": "rows.jsonl"},
                "tokenizer": {"train": {"vocab_size": 300}},
                "batch_size": 4,
                "num_workers": 1,  # what makes batches asks its own host
            },
            "loss_spike": 3.0,
            "merge": adapter,
            "trainer": {
                "max_epochs": 1,
                "accelerator": "cpu",
                "enable_progress_bar": False,
                "log_every_n_steps": 100,
                "callbacks": [{"class_path": f"{__name__}.{one}"} for one in ("Watch", *callbacks)],
                **trainer,
            },
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
        assert main(["fit", "-c", "run.yaml", "--name", "run"]) == 0

    return run


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16-mixed"},
        {"adapter": True, "accumulate_grad_batches": 2},
    ],
    ids=["whole", "adapter"],
)
def test_no_batch_asks_for_numbers(fit, changes):
    fit(**changes)
    assert asked == []


def test_what_does_is_seen(fit):
    fit("Ask")
    assert len(asked) == 3
