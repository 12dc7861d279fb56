from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lit_hf.data.datamodule import LitDataModule
from lit_hf.data.sources import Source
from lit_hf.data.tokenization import TokenizerSettings, TokenizerTraining
from lit_hf.errors import InputError
from lit_hf.task import Batch, RowProblem, Task
from tests.data.conftest import Sorting

Write = Callable[..., str]
LABELS = ("dull", "good")


def rows(count: int, first: int = 0) -> list[dict]:
    return [{"text": "the film " * (row % 4 + 1), "label": LABELS[row % 2]} for row in range(first, first + count)]


@pytest.fixture
def source(write_jsonl: Write) -> Source:
    return Source(
        train=write_jsonl("train.jsonl", rows(21)),
        validation=write_jsonl("validation.jsonl", rows(5)),
        test=write_jsonl("test.jsonl", rows(3)),
    )


def module(source: Source, tiny_text_model: Path, task: Task | None = None, **settings: object) -> LitDataModule:
    return LitDataModule(task or Sorting(), source, checkpoint=str(tiny_text_model), **settings)


def problems(data: LitDataModule, stage: str = "fit") -> list[str]:
    with pytest.raises(InputError) as caught:
        data.prepare(stage)
    return [f"{problem.where}: {problem.what}" for problem in caught.value.problems]


def test_fit_prepares_train_and_validation_and_binds_the_task(source: Source, tiny_text_model: Path) -> None:
    data = module(source, tiny_text_model)

    data.prepare("fit")

    assert {name: len(encoded) for name, encoded in data.encoded.items()} == {"train": 21, "validation": 5}
    assert {name: len(split.rows) for name, split in data.splits.items()} == {"train": 21, "validation": 5}
    assert data.lengths["train"].longest == 10
    assert data.labels == data.task.labels == list(LABELS)
    assert data.task.tokenizer is data.tokenizer


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_the_other_stages_prepare_their_split_alone(source: Source, tiny_text_model: Path, stage: str) -> None:
    data = module(source, tiny_text_model)

    data.prepare(stage)

    assert set(data.encoded) == {"validation" if stage == "validate" else "test"}
    assert data.labels == list(LABELS)


def test_preparing_again_does_nothing(source: Source, tiny_text_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = module(source, tiny_text_model)
    data.prepare("fit")
    encoded, tokenizer = data.encoded["train"], data.tokenizer
    caplog.set_level(logging.INFO, "lit_hf")
    caplog.clear()

    for stage in ("fit", "validate"):
        data.prepare(stage)

    assert data.encoded["train"] is encoded
    assert data.tokenizer is tokenizer
    assert not caplog.messages


def test_labels_of_a_checkpoint_are_not_learnt_anew(source: Source, tiny_text_model: Path) -> None:
    data = module(source, tiny_text_model)
    data.task.labels = ["good", "dull"]

    data.prepare("validate")

    assert data.labels == ["good", "dull"]
    assert data.encoded["validation"]["labels"][:3] == [1, 0, 1]
    assert set(data.splits) == {"validation"}


def test_labels_are_learnt_from_the_training_rows_at_evaluation_too(write_jsonl: Write, tiny_text_model: Path) -> None:
    source = Source(train=write_jsonl("train.jsonl", rows(4)), test=write_jsonl("test.jsonl", rows(1)))
    data = module(source, tiny_text_model)

    data.prepare("test")

    assert data.labels == list(LABELS)


def test_batches_are_padded_to_their_longest_row(source: Source, tiny_text_model: Path) -> None:
    data = module(source, tiny_text_model, batch_size=4, eval_batch_size=2, pad_to_multiple_of=8)
    data.prepare("fit")

    train, validation = list(data.train_dataloader()), list(data.val_dataloader())

    assert [batch["sizes"].rows for batch in train] == [4, 4, 4, 4, 4, 1]
    assert [batch["sizes"].rows for batch in validation] == [2, 2, 1]
    assert {batch["input_ids"].shape[1] for batch in train} <= {8, 16}
    assert sum(batch["sizes"].tokens for batch in train) == int(sum(2 * (row % 4 + 1) + 2 for row in range(21)))


def test_evaluation_batches_are_twice_as_large_by_default(source: Source, tiny_text_model: Path) -> None:
    data = module(source, tiny_text_model, batch_size=2)
    data.prepare("fit")

    assert [batch["sizes"].rows for batch in data.val_dataloader()] == [4, 1]


def test_a_token_budget_takes_the_place_of_a_number_of_rows(
    source: Source, tiny_text_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lit_hf")
    data = module(source, tiny_text_model, batch_size=1, batch_tokens=32, pad_to_multiple_of=8)
    data.prepare("fit")

    train, validation = list(data.train_dataloader()), list(data.val_dataloader())

    assert [batch["input_ids"].numel() for batch in train].count(32) >= len(train) - 2
    assert max(batch["sizes"].padded_tokens for batch in [*train, *validation]) == 32
    assert [sum(batch["sizes"].rows for batch in batches) for batches in (train, validation)] == [21, 5]
    assert f"train: {len(train)} batches of up to 32 tokens, padding" in caplog.text


@pytest.mark.parametrize(
    ("settings", "rows", "tokens"),
    [({"batch_size": 4}, 4, 4 * 10), ({"batch_size": 4, "eval_batch_size": 50, "batch_tokens": 24}, 5, 24)],
    ids=["rows", "tokens"],
)
def test_columns_are_computed_of_batches_that_are_no_larger_than_in_training(
    source: Source, tiny_text_model: Path, settings: dict, rows: int, tokens: int
) -> None:
    data = module(source, tiny_text_model, **settings)
    data.prepare("fit")
    seen = []

    def compute(batches: Iterable[Batch]) -> dict[str, list[float]]:
        seen.extend(batch["sizes"] for batch in batches)
        return {"one": [1.0] * sum(sizes.rows for sizes in seen)}

    del data.splits["validation"]
    data.add_columns(compute, f"{settings}")
    evaluated = module(source, tiny_text_model, **settings)
    evaluated.prepare("test")
    evaluated.add_columns(lambda batches: {"one": [2.0] * 3}, f"{settings}")

    assert data.encoded["train"]["one"][:] == [1.0] * 21
    assert evaluated.encoded["test"]["one"][:] == [2.0] * 3
    assert max(sizes.rows for sizes in seen) == rows
    assert max(sizes.padded_tokens for sizes in seen) == tokens


def test_rows_that_no_batch_has_room_for_are_told_before_training(source: Source, tiny_text_model: Path) -> None:
    assert problems(module(source, tiny_text_model, batch_tokens=9)) == [
        "data.batch_tokens: the longest training row takes 10 tokens, a batch has 9."
    ]
    assert problems(module(source, tiny_text_model, batch_tokens=15, pad_to_multiple_of=8)) == [
        "data.batch_tokens: the longest training row takes 16 tokens, a batch has 15."
    ]


def test_a_token_budget_needs_rows_of_like_length(source: Source, tiny_text_model: Path) -> None:
    assert problems(module(source, tiny_text_model, batch_tokens=0, group_by_length=False)) == [
        "data.batch_tokens: 0 is too small.",
        "data.group_by_length: false does not go with data.batch_tokens, whose batches are of like length.",
    ]


def test_the_loader_knows_the_trainer_s_steps(source: Source, tiny_text_model: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    class Steps(Counting):
        def training_step(self, batch: dict, index: int) -> torch.Tensor:
            seen.append(batch["sizes"].step_targets)
            return self.weight.sum()

    runner = trainer(tmp_path, accumulate_grad_batches=2, limit_train_batches=3, max_steps=2)
    runner.fit(Steps(), datamodule=module(source, tiny_text_model, batch_size=4))

    assert seen == [8, 8, 4]


def test_without_validation_there_is_no_validation_loader(
    write_jsonl: Write, tiny_text_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = module(Source(train=write_jsonl("train.jsonl", rows(9)), validation_share=0), tiny_text_model)

    data.prepare("fit")

    assert data.val_dataloader() == []
    assert "There is no validation split" in caplog.text


def test_a_tokenizer_is_trained_on_the_training_rows(source: Source) -> None:
    data = LitDataModule(Sorting(), source, tokenizer=TokenizerSettings(train=TokenizerTraining(270)), max_length=6)

    data.prepare("validate")

    assert data.tokenizer.model_max_length == 6
    assert len(data.tokenizer.tokenize(" film")) < 4
    assert data.lengths["validation"].longest == 6


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(source: Source, tiny_text_model: Path) -> None:
    def batches(seed: int) -> list[list]:
        data = module(source, tiny_text_model, batch_size=4, seed=seed)
        data.prepare("fit")
        return [batch["input_ids"].tolist() for batch in data.train_dataloader()]

    assert batches(1) == batches(1)
    assert batches(1) != batches(2)


def test_columns_and_settings_are_checked(source: Source, tiny_text_model: Path, write_jsonl: Write) -> None:
    assert problems(module(source, tiny_text_model, Sorting(text="txt", label="labl")))[0].startswith(
        "data.source.train: the train split"
    )
    assert problems(module(source, tiny_text_model, batch_size=0, max_length=-1)) == [
        "data.max_length: -1 is too small.",
        "data.batch_size: 0 is too small.",
    ]


def test_faults_in_the_rows_of_all_splits_are_told_at_once(write_jsonl: Write, tiny_text_model: Path) -> None:
    empty = {"text": "", "label": "good"}
    train, validation = write_jsonl("t.jsonl", [*rows(2), empty]), write_jsonl("v.jsonl", [empty])

    found = problems(module(Source(train=train, validation=validation), tiny_text_model))

    assert [problem.split(": ")[0] for problem in found] == [f"{train}:3", f"{validation}:1"]


def test_a_stage_without_its_split_is_told(write_jsonl: Write, tiny_text_model: Path) -> None:
    data = module(Source(train=write_jsonl("train.jsonl", rows(3))), tiny_text_model)

    assert problems(data, "test") == ["data.source.test: there is no test split."]


def test_a_misspelled_column_and_tokenizer_are_told_together(source: Source) -> None:
    data = LitDataModule(Sorting(label="labels"), source, checkpoint="./nowhere")

    found = problems(data)

    assert [problem.split(": ")[0] for problem in found] == [
        "data.source.train",
        "data.source.validation",
        "model.checkpoint",
    ]


class Counting(LightningModule):
    """Counts what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[str, int, list]] = []

    def training_step(self, batch: dict, index: int) -> torch.Tensor:
        self.seen.append(("train", self.current_epoch, batch["input_ids"].tolist()))
        return self.weight.sum()

    def validation_step(self, batch: dict, index: int) -> None:
        self.seen.append(("validation", batch["sizes"].rows, []))

    def test_step(self, batch: dict, index: int) -> None:
        self.seen.append(("test", batch["sizes"].rows, []))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **settings: object) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    short = {"max_epochs": 2, "num_sanity_val_steps": 0}
    return Trainer(accelerator="cpu", devices=1, default_root_dir=folder, **quiet, **short | settings)


def test_lightning_fits_validates_and_tests_on_it(source: Source, tiny_text_model: Path, tmp_path: Path) -> None:
    data, model = module(source, tiny_text_model, batch_size=8), Counting()
    runner = trainer(tmp_path)

    runner.fit(model, datamodule=data)
    runner.validate(model, datamodule=data, verbose=False)
    runner.test(model, datamodule=data, verbose=False)

    assert [kind for kind, *_ in model.seen] == (["train"] * 3 + ["validation"]) * 2 + ["validation", "test"]
    epochs = [[ids for kind, number, ids in model.seen if (kind, number) == ("train", epoch)] for epoch in (0, 1)]
    assert epochs[0] != epochs[1]
    assert [number for kind, number, _ in model.seen if kind == "test"] == [3]


def test_a_sanity_check_takes_a_few_rows_and_a_validation_all(
    source: Source, tiny_text_model: Path, tmp_path: Path
) -> None:
    model = Counting()
    runner = trainer(tmp_path, num_sanity_val_steps=1, max_epochs=1)

    runner.fit(model, datamodule=module(source, tiny_text_model, batch_size=8))

    assert [rows for kind, rows, _ in model.seen if kind == "validation"] == [2, 5]


def test_overfitting_on_a_batch_has_the_same_one_in_every_epoch(
    source: Source, tiny_text_model: Path, tmp_path: Path
) -> None:
    model = Counting()

    trainer(tmp_path, overfit_batches=1).fit(model, datamodule=module(source, tiny_text_model, batch_size=8))

    one, two = [ids for kind, _, ids in model.seen if kind == "train"]
    assert one == two


def test_what_the_task_finds_names_the_column(source: Source, tiny_text_model: Path) -> None:
    class Strict(Sorting):
        def check(self, rows: object) -> list[RowProblem]:
            return [RowProblem([4], "label", "this is not allowed.", "Change it.")]

    found = problems(module(source, tiny_text_model, Strict()))

    assert found == [
        f"{source.train}:5: column 'label': this is not allowed.",
        f"{source.validation}:5: column 'label': this is not allowed.",
    ]


def test_a_list_of_sources_is_mixed_and_its_cache_is_used_again(
    write_jsonl: Write, tiny_text_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = [{"review": row["text"], "tone": row["label"], "text": 3} for row in rows(30)]
    sources = [
        Source(train=write_jsonl("train.jsonl", rows(9)), validation=write_jsonl("dev.jsonl", rows(4))),
        Source(
            train=write_jsonl("other.jsonl", other), columns={"text": "review", "label": "tone"}, limit=10, weight=2
        ),
    ]
    caplog.set_level(logging.INFO, "lit_hf")

    for _ in range(2):
        data = module(sources, tiny_text_model, mixing="interleave", stopping="all_exhausted")
        data.prepare("fit")

    assert len(data.encoded["train"]) == len(data.splits["train"].rows) >= 19
    assert len(data.encoded["validation"]) == 4 + 3
    assert data.labels == list(LABELS)
    assert sum("tokenized" in message for message in caplog.messages) == 2
    assert sum("reused from the cache" in message for message in caplog.messages) == 2


def test_a_fault_in_a_mixed_row_is_told_with_its_file_and_line(write_jsonl: Write, tiny_text_model: Path) -> None:
    other = write_jsonl("other.jsonl", [*rows(6), {"text": "", "label": "dull"}, *rows(6)])
    sources = [
        Source(train=write_jsonl("train.jsonl", rows(9)), validation_share=0),
        Source(train=other, validation_share=0),
    ]

    assert problems(module(sources, tiny_text_model)) == [f"{other}:7: column 'text': the text is empty."]


def test_a_split_that_no_source_has_is_told(write_jsonl: Write, tiny_text_model: Path) -> None:
    sources = [Source(train=write_jsonl("train.jsonl", rows(9)))]

    assert problems(module(sources, tiny_text_model), "test") == ["data.source[0].test: there is no test split."]
