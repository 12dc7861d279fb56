import pytest
import yaml
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar

from lit_hf.cli.trainer import TrainerCLI
from lit_hf.errors import InputError
from lit_hf.run import RunFolder
from lit_hf.training.callbacks.checkpoints import RunCheckpoints
from lit_hf.training.callbacks.progress import Progress
from lit_hf.training.tracking import MetricsFile


@pytest.fixture
def config(folder, tiny_text_model):
    """A config file in an empty working directory."""
    rows = "".join(
        f'{{"text": "{word} film", "label": "{label}"}}\n' for word, label in [("good", "a"), ("bad", "b")] * 6
    )
    (folder / "rows.jsonl").write_text(rows)
    content = {
        "task": "TextClassification",
        "model": {"checkpoint": str(tiny_text_model)},
        "data": {"source": {"train": "rows.jsonl"}},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(content))
    return "own.yaml"


def trainer_of(config, *options):
    cli = TrainerCLI(["-c", config, "--trainer.accelerator", "cpu", *options])
    cli.prepare("fit")
    cli.run.create()
    trainer = cli.make_trainer("fit")
    cli.start_trackers(0, exact=True)
    return cli, trainer


def kinds(trainer):
    return [type(callback) for callback in trainer.callbacks]


def test_the_task_is_one_object_for_data_and_model(config):
    cli = TrainerCLI(["-c", config])
    assert cli.datamodule.task is cli.model.task is cli.task


def test_the_run_is_named_after_the_config_or_by_the_option(config):
    assert TrainerCLI(["-c", config]).run.path == RunFolder("runs/own").path
    assert TrainerCLI(["-c", config, "--name", "x", "--output_dir", "y"]).run.path == RunFolder("y/x").path


@pytest.mark.parametrize("name", ["a/b", "..", "a b"])
def test_a_name_that_leaves_the_folder_is_refused(config, name):
    with pytest.raises(InputError, match="is no name"):
        TrainerCLI(["-c", config, "--name", name])


def test_epochs_are_three_unless_something_else_ends_the_training(config):
    assert trainer_of(config)[1].max_epochs == 3
    assert trainer_of(config, "--trainer.max_epochs", "5")[1].max_epochs == 5
    by_steps = trainer_of(config, "--trainer.max_steps", "7")[1]
    assert (by_steps.max_steps, by_steps.max_epochs) == (7, None)


def test_our_checkpoint_comes_before_a_user_s_and_metrics_are_always_written(config):
    own = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": "other"}}]
    with open("more.yaml", "w") as file:  # noqa: PTH123
        yaml.safe_dump({"trainer": {"callbacks": own}}, file)
    _, trainer = trainer_of(config, "-c", "more.yaml")
    assert isinstance(trainer.checkpoint_callback, RunCheckpoints)
    assert trainer.checkpoint_callback.monitor == "val/accuracy"
    assert len(trainer.checkpoint_callbacks) == 2
    assert isinstance(trainer.loggers[0], MetricsFile)


def test_the_progress_line_gives_way(config):
    assert Progress in kinds(trainer_of(config)[1])
    assert Progress not in kinds(trainer_of(config, "--trainer.enable_progress_bar", "false")[1])
    _, rich = trainer_of(config, "--trainer.callbacks", "lightning.pytorch.callbacks.RichProgressBar")
    assert Progress not in kinds(rich)
    assert RichProgressBar in kinds(rich)


def test_patience_watches_the_monitored_metric(config):
    _, trainer = trainer_of(config, "--patience", "2", "--monitor", "loss")
    (stopping,) = [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]
    assert (stopping.monitor, stopping.mode, stopping.patience) == ("val/loss", "min", 2)


def test_what_was_learnt_from_decides_the_fingerprints(config):
    before = trainer_of(config)[0].fingerprints
    assert trainer_of(config)[0].fingerprints == before
    assert set(before) == {"model", "tokenizer", "train", "validation"}
