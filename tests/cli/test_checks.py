import shutil
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from lit_hf.cli.checks import (
    callback_problems,
    clipping_problems,
    count_problems,
    disk_problems,
    guard_problems,
    monitor_mode,
    monitor_problems,
    monitored,
    precision_problems,
    quantization_problems,
    sharding_problems,
    strategy_problems,
    validation_problems,
)
from lit_hf.tasks import TextClassification
from lit_hf.training.strategies import FullySharding


@pytest.fixture
def task():
    return TextClassification(labels=["a", "b"])


def test_the_task_s_own_metric_is_monitored_unless_the_config_names_one(task):
    assert (monitored(task, None), monitored(task, "loss"), monitored(task, "val/mcc")) == ("accuracy", "loss", "mcc")


@pytest.mark.parametrize(("metric", "mode"), [("loss", "min"), ("accuracy", "max")])
def test_better_is_lower_for_the_loss_and_higher_for_accuracy(task, metric, mode):
    assert monitor_mode(task, metric) == mode


def test_better_is_lower_for_a_squared_error():
    task = TextClassification(kind="regression")
    assert (monitor_mode(task, "mse"), monitor_mode(task, "pearson")) == ("min", "max")


def test_a_metric_that_nothing_logs_is_refused_with_the_nearest(task):
    (problem,) = monitor_problems(task, "acuracy", has_validation=True, patience=None)
    assert problem.where == "monitor"
    assert problem.cure.startswith("Did you mean 'accuracy'?")


def test_a_matrix_cannot_be_monitored(task):
    assert list(monitor_problems(task, "confusion_matrix", has_validation=True, patience=None))


def test_patience_needs_a_validation_split(task):
    (problem,) = monitor_problems(task, "accuracy", has_validation=False, patience=2)
    assert problem.where == "patience"
    assert not list(monitor_problems(task, "accuracy", has_validation=True, patience=2))


def test_a_disk_that_is_too_small_is_told_with_both_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3_000_000_000))
    # three checkpoints of a weight and two moments, four bytes each: 36 bytes a parameter
    assert not list(disk_problems(tmp_path, trainable=80_000_000, stored=80_000_000))
    (problem,) = disk_problems(tmp_path, trainable=100_000_000, stored=100_000_000)
    assert "3.0 GB free" in problem.what
    assert "3.6 GB" in problem.what


def test_checkpoints_that_are_there_are_room_for_those_that_replace_them(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_300_000_000))
    size = {"trainable": 100_000_000, "stored": 100_000_000}
    assert not list(disk_problems(tmp_path, **size, kept=2_400_000_000))  # the best and the last: one more is written
    assert list(disk_problems(tmp_path, **size, kept=1_200_000_000))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_100_000_000))
    assert list(disk_problems(tmp_path, **size, kept=9_000_000_000))


@pytest.mark.parametrize(
    ("precision", "weights", "has_adapter", "where"),
    [
        ("16-mixed", "bfloat16", False, "trainer.precision"),
        (16, "bfloat16", True, "trainer.precision"),
        ("bf16-mixed", "float16", True, "trainer.precision"),
        ("bf16", "float16", False, "trainer.precision"),
        ("32-true", "float16", False, "model.dtype"),
        ("16-mixed", "float16", False, "model.dtype"),
        ("16-true", "float32", False, "trainer.precision"),
    ],
)
def test_weights_and_arithmetic_that_contradict_each_other_are_refused(precision, weights, has_adapter, where):
    (problem,) = precision_problems(precision, weights, None, has_adapter)
    assert problem.where == where
    assert "Leave model.dtype out" in problem.cure or "leave model.dtype out" in problem.cure


@pytest.mark.parametrize(
    ("precision", "weights", "has_adapter"),
    [
        ("32-true", "float32", False),
        (32, "bfloat16", False),
        ("bf16-mixed", "float32", False),
        ("bf16-mixed", "bfloat16", True),
        ("bf16-true", "float32", False),
        ("16-mixed", "float32", False),
        ("16-mixed", "float16", True),
        (None, "float32", False),
    ],
)
def test_weights_and_arithmetic_that_go_together_are_not(precision, weights, has_adapter):
    assert list(precision_problems(precision, weights, None, has_adapter)) == []


def test_flash_attention_needs_16_bits():
    (problem,) = precision_problems("32-true", "float32", "flash_attention_2", False)
    assert problem.where == "model.attention"
    assert not list(precision_problems("bf16-mixed", "float32", "flash_attention_2", False))
    assert not list(precision_problems("32-true", "bfloat16", "flash_attention_2", True))


def test_fused_kernels_that_scale_gradients_cannot_be_clipped():
    (problem,) = clipping_problems(16, 1.0, fused=True)
    assert problem.where == "model.optimizer.init_args.fused"
    assert not list(clipping_problems("16-mixed", 0, fused=True))
    assert not list(clipping_problems("bf16-mixed", 1.0, fused=True))
    assert not list(clipping_problems("16-mixed", 1.0, fused=False))


@pytest.mark.parametrize(
    "strategy", ["auto", "ddp", "ddp_find_unused_parameters_true", DDPStrategy(), "fsdp2", FullySharding()]
)
def test_strategies_whose_runs_can_be_saved_and_resumed_are_taken(strategy):
    assert list(strategy_problems(strategy)) == []


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_cpu_offload", "deepspeed_stage_3", ModelParallelStrategy()])
def test_other_strategies_that_cut_weights_are_refused(strategy):
    (problem,) = strategy_problems(strategy)
    assert problem.where == "trainer.strategy" and "fsdp2" in problem.cure


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16", "bf16-true", 32])
def test_what_goes_with_weights_that_are_cut_is_taken(precision):
    assert list(sharding_problems(precision, "torch.optim.adamw.AdamW", is_quantized=False)) == []


@pytest.mark.parametrize(
    ("precision", "optimizer", "is_quantized", "where"),
    [
        ("16-mixed", "torch.optim.AdamW", False, "trainer.precision"),
        ("bf16-mixed", "bitsandbytes.optim.adamw.AdamW8bit", False, "model.optimizer"),
        ("bf16-mixed", "torch.optim.Adafactor", False, "model.optimizer"),
        ("bf16-mixed", "torch.optim.AdamW", True, "model.quantization"),
    ],
)
def test_what_does_not_go_with_weights_that_are_cut_is_told(precision, optimizer, is_quantized, where):
    (problem,) = sharding_problems(precision, optimizer, is_quantized)
    assert problem.where == where and problem.cure


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", None])
def test_quantized_weights_train_in_mixed_and_in_full_precision(precision):
    assert list(quantization_problems(precision)) == []


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", 64])
def test_precisions_that_turn_all_weights_into_one_type_are_refused_beside_quantized_ones(precision):
    (problem,) = quantization_problems(precision)
    assert problem.where == "trainer.precision" and "bf16-mixed" in problem.cure


def validations(interval, accumulate, every=1):
    settings = {"val_check_interval": interval, "accumulate_grad_batches": accumulate, "check_val_every_n_epoch": every}
    return list(validation_problems(settings))


def test_validations_come_between_optimizer_steps():
    assert not [*validations(7, 1, None), *validations(8, 2), *validations(0.25, 2)]
    (batches,) = validations(7, 2)
    assert batches.where == "trainer.val_check_interval"
    assert "such as 8" in batches.cure
    (duration,) = validations("00:00:10:00", 1)
    assert "comes at another step on each device" in duration.what
    (through,) = validations(8, 4, None)
    assert through.where == "trainer.check_val_every_n_epoch" and "less than 4 batches" in through.what


def test_steps_cannot_be_skipped_where_ranks_move_by_their_gradients():
    assert list(guard_problems(0, None, has_moving_ranks=True)) == []
    assert list(guard_problems(3, 1.5, has_moving_ranks=False)) == []
    (problem,) = guard_problems(1, None, has_moving_ranks=True)
    assert problem.where == "skip_nonfinite"


@pytest.mark.parametrize(("skip", "spike", "where"), [(-1, None, "skip_nonfinite"), (0, 1.0, "loss_spike")])
def test_guards_that_make_no_sense_are_told(skip, spike, where):
    assert [problem.where for problem in guard_problems(skip, spike, has_moving_ranks=False)] == [where]


def test_steps_and_validations_are_counted_from_one():
    assert list(count_problems(None, None)) == list(count_problems(1, 1)) == []
    assert [problem.where for problem in count_problems(0, -1)] == ["checkpoint_every", "patience"]


def test_a_timer_is_set_by_the_trainer_s_own_key():
    (problem,) = callback_problems([Timer("00:01:00:00")])
    assert problem.where == "trainer.callbacks" and "trainer.max_time" in problem.cure
