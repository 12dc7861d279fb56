"""Faults that the plain stack is silent or cryptic about, each to be made for real, and what is to come of it."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet
import torch
from lightning.pytorch import Callback
from transformers import AutoConfig, AutoTokenizer, BertModel

from lit_hf.run import RunFolder
from lit_hf.tasks import TextClassification

GOOD = [
    {"text": f"the {thing} was {word}", "label": "good"} for thing in ("film", "plot") for word in ("great", "fine")
]
BAD = [{"text": f"the {thing} was {word}", "label": "bad"} for thing in ("film", "plot") for word in ("dull", "poor")]
ROWS = [*GOOD, *BAD]
TALKS = [{"prompt": "What is red?", "completion": "A colour."}] * 8
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
LORA = {"class_path": "peft.LoraConfig", "init_args": {"r": 2}}
NF4 = {"class_path": "transformers.BitsAndBytesConfig", "init_args": {"load_in_4bit": True}}
STATUSES = {
    401: "there is no such model on the Hub, or it needs a login",
    403: "the Hub refuses access; it may be gated",
    404: "there is no such model or revision on the Hub",
    429: "the Hub refuses so many requests",
    500: "the Hub fails",
    503: "the Hub fails",
}
"""What the Hub answers, and what is said of it."""


def lines(rows: list[Any]) -> str:
    """Return rows as JSON lines."""
    return "".join(f"{json.dumps(row)}\n" for row in rows)


# what goes wrong while training


class Watch(Callback):
    """Writes down what the first batch is trained on, and how."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        seen = {
            "training": pl_module.model.training,
            "dtypes": sorted({str(weight.dtype) for weight in pl_module.parameters()}),
            "input_ids": batch["input_ids"].tolist(),
            "labels": batch["labels"].tolist(),
        }
        Path("seen.json").write_text(json.dumps(seen))


class Spoil(Callback):
    """Spoils a weight before the second batch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            pl_module.model.classifier.weight.data.fill_(float("nan"))


class Greedy(Callback):
    """Asks for more memory than there is, at the second batch."""

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        if trainer.global_step % 4 == 1:
            torch.empty(2**60)


class GreedyInValidation(Callback):
    """Asks for more memory than there is, in a validation."""

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            torch.empty(2**60)


class KillWorkers(Callback):
    """Kills a process that prepares batches."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        max(multiprocessing.active_children(), key=lambda worker: worker.pid).kill()


class Unlabelled(TextClassification):
    """Forgets the labels."""

    def encode(self, examples):
        return {name: values for name, values in super().encode(examples).items() if name != "labels"}

    def forward(self, model, batch):
        return model(**batch)

    def update(self, metrics, outputs, batch):
        """Count nothing."""


# the table


class Fault(NamedTuple):
    """A fault, and what is to come of it.

    Attributes:
        number: Its number in the list.
        name: What it is.
        told: Parts of what is said, in any order.
        code: The exit code.
        files: What is written, by name; rows as JSON lines; None removes a file.
        config: What is changed of the config, as dotted keys.
        options: Of the command line.
        make: Makes what else is wrong.
        check: Looks at what came of it.
        verb: The verb and what follows it, in place of a fit.
        resumes: Whether it happens to a run that has a checkpoint already.
        late: Whether it is found by the model only, when the run's folder is there.
    """

    number: int
    name: str
    told: tuple[str, ...] = ()
    code: int = 2
    files: Mapping[str, Any] = {}
    config: Mapping[str, Any] = {}
    options: list[str] = []
    make: Callable[[Path], object] = lambda folder: None
    check: Callable[[Path], object] = lambda folder: None
    verb: list[str] | None = None
    resumes: bool = False
    late: bool = False


def own(task: str) -> dict[str, Any]:
    return {"class_path": f"{__name__}.{task}"}


def callback(name: str) -> dict[str, Any]:
    return {"trainer.callbacks": [{"class_path": f"{__name__}.{name}", "init_args": {}}]}


def seen(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "seen.json").read_text())


def run(folder: Path) -> RunFolder:
    return RunFolder(folder / "runs" / "tiny")


def in_training_mode(folder: Path) -> None:
    assert seen(folder)["training"] is True


def in_float32(folder: Path) -> None:
    assert seen(folder)["dtypes"] == ["torch.float32"]
    state = torch.load(run(folder).checkpoint("last"), weights_only=True)["optimizer_states"][0]["state"]
    assert {value["exp_avg"].dtype for value in state.values()} == {torch.float32}


def head_is_trained(folder: Path) -> None:
    adapter = json.loads((run(folder).export / "adapter_config.json").read_text())
    assert set(adapter["modules_to_save"]) == {"classifier", "score"}
    kept = torch.load(run(folder).checkpoint("last"), weights_only=True)["state_dict"]
    head = "model.base_model.model.classifier"
    assert not torch.equal(kept[f"{head}.modules_to_save.default.weight"], kept[f"{head}.original_module.weight"])


def end_is_learnt(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run(folder).tokenizer)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert all(tokenizer.eos_token_id in labels for labels in seen(folder)["labels"])


def missing_values_are_text(folder: Path) -> None:
    texts = AutoTokenizer.from_pretrained(run(folder).tokenizer).batch_decode(
        seen(folder)["input_ids"], skip_special_tokens=True
    )
    assert {text.replace(" ##", "") for text in texts} == {"na", "null"}


def labels_are_in_the_order_of_numbers(folder: Path) -> None:
    assert AutoConfig.from_pretrained(run(folder).export).id2label == {0: "2", 1: "10"}


def bf16(folder: Path) -> None:
    BertModel.from_pretrained(folder / "base", dtype=torch.bfloat16).save_pretrained(folder / "bf16")
    shutil.copy(folder / "base" / "tokenizer.json", folder / "bf16")
    shutil.copy(folder / "base" / "tokenizer_config.json", folder / "bf16")


def cut(path: str, size: int) -> Callable[[Path], object]:
    return lambda folder: (folder / path).write_bytes((folder / path).read_bytes()[:size])


def cut_checkpoint(folder: Path) -> None:
    state = run(folder).checkpoint("last")
    state.write_bytes(state.read_bytes()[:-100])


def flip_byte(folder: Path) -> None:
    state = run(folder).checkpoint("last")
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)


def parquet(folder: Path) -> None:
    pa.parquet.write_table(pa.table({"text": ["good"] * 99, "label": ["a", "b", "c"] * 33}), folder / "train.parquet")
    cut("train.parquet", 200)(folder)


CAUSAL = {"task": {"class_path": "CausalLM"}}
CHAT = {"task": {"class_path": "Chat", "init_args": {"prompt": "prompt", "completion": "completion"}}}
CHAT |= {"model.checkpoint": "decoder"}
TALK_FILES = {"train.jsonl": TALKS, "validation.jsonl": TALKS}
NUMBERED = {"data.source": {"train": "train.jsonl", "validation_share": 0}}
CSV = {"data.source": {"train": "train.csv", "validation_share": 0}}

SILENT = [
    Fault(1, "the model is left in evaluation mode", config=callback("Watch"), code=0, check=in_training_mode),
    Fault(
        2,
        "a weight becomes NaN",
        (
            "step 6, epoch 2: the training loss is nan.",
            "model.optimizer.init_args.lr",
            "The last checkpoint is",
            "step-00000004",
        ),
        3,
        config=callback("Spoil"),
        resumes=True,
    ),
    Fault(3, "empty train split", ("train.jsonl: the file is empty.",), files={"train.jsonl": ""}),
    Fault(4, "empty validation split", ("validation.jsonl: the file is empty.",), files={"validation.jsonl": ""}),
    Fault(
        5,
        "one of two LoRA targets matches nothing",
        ("model.adapter.init_args.target_modules: 'valeu' matches no module of the model.", "self.value"),
        config={"model.adapter": {**LORA, "init_args": {"target_modules": ["query", "valeu"]}}},
    ),
    Fault(
        6,
        "LoRA without a task type",
        ("new weights, not in the checkpoint: classifier.bias, classifier.weight",),
        0,
        config={"model.adapter": LORA, "model.schedule": {"warmup": 0}},
        check=head_is_trained,
    ),
    Fault(
        7,
        "4-bit weights that should all train",
        ("model.adapter: quantized weights do not train themselves, and there is no adapter.",),
        config={"model.quantization": NF4},
    ),
    Fault(
        8,
        "a bf16 checkpoint",
        (),
        0,
        make=bf16,
        config={"model.checkpoint": "bf16", **callback("Watch")},
        check=in_float32,
    ),
    Fault(9, "a new head, in fit", ("new weights, not in the checkpoint: classifier.bias, classifier.weight",), 0),
    Fault(
        9,
        "a new head, in predict",
        ("base: there is no lit_hf.json that names its task, and BertModel is not a text classifier.",),
        verb=["predict", "base", "--text", "good"],
    ),
    Fault(
        10,
        "no labels in the batch",
        ("task: the model returned no loss: its batches have no labels.",),
        config={"task": own("Unlabelled")},
        late=True,
    ),
    Fault(
        11,
        "no token that is trained",
        ("train.jsonl:1: column 'completion': what is trained lies beyond the first 4 tokens", "and 5 more rows"),
        files=TALK_FILES,
        config={**CHAT, "data.max_length": 4},
    ),
    Fault(
        12,
        "padding by the end token",
        (),
        0,
        files=TALK_FILES,
        config={**CHAT, **callback("Watch")},
        check=end_is_learnt,
    ),
    Fault(
        13,
        "NA and null as text in CSV",
        (),
        0,
        files={"train.csv": "text,label\nNA,good\nnull,bad\n"},
        config={**CSV, **callback("Watch")},
        check=missing_values_are_text,
    ),
    Fault(
        14,
        "a missing label among whole numbers",
        ("train.jsonl:2: column 'label': the value is missing (null).",),
        files={
            "train.jsonl": [{"text": "good", "label": 1}, {"text": "bad", "label": None}, {"text": "poor", "label": 0}]
        },
    ),
    Fault(
        14,
        "a missing label in CSV",
        ("train.csv:3: column 'label'",),
        files={"train.csv": "text,label\ngood,1\nbad,\npoor,0\n"},
        config=CSV,
    ),
    Fault(
        15,
        "labels 0 and 'pos' mixed",
        ("error: train.jsonl:2: column 'label' is text here (\"pos\"), but a number in the rows above.",),
        files={"train.jsonl": [{"text": "bad", "label": 0}, {"text": "good", "label": "pos"}]},
    ),
    Fault(
        16,
        "a key misspelled in some rows",
        ("train.jsonl:2: column 'label': the row has no such key, but 'lable': is it misspelled?",),
        files={"train.jsonl": [{"text": "bad", "label": "a"}, {"text": "good", "lable": "b"}]},
    ),
    Fault(
        17,
        "labels that are numbers in CSV",
        (),
        0,
        files={"train.csv": "text,label\ngood,10\nbad,2\n"},
        config=CSV,
        check=labels_are_in_the_order_of_numbers,
    ),
    Fault(
        18,
        "BERT as a causal language model",
        ("model.checkpoint: a 'bert' model reads in both directions", "Take a decoder"),
        config=CAUSAL,
    ),
    Fault(
        19,
        "num_labels: 5 beside two names",
        ("model.config.num_labels: 5 labels are asked for, but the data has 2: bad, good.",),
        config={
            "model": {"config": {"model_type": "bert", **TINY, "num_labels": 5}},
            "data.tokenizer": {"checkpoint": "base"},
        },
    ),
    Fault(
        20,
        "resuming a finished run",
        ("the run runs/tiny is finished already; nothing was done.",),
        0,
        resumes=True,
        options=["--trainer.max_epochs", "1"],
    ),
    Fault(
        21,
        "a YAML key given twice",
        ("twice.yaml:2: `name` is given twice in the same block, first at twice.yaml:1.",),
        files={"twice.yaml": "name: a\nname: b\n"},
        options=["-c", "twice.yaml"],
    ),
    Fault(
        21,
        "an abbreviated option",
        ("trainer.max_epoch: there is no such key.", "Did you mean 'max_epochs'?"),
        options=["--trainer.max_epoch", "1"],
    ),
    Fault(
        22,
        "truncation",
        ("train: median 4, 95% up to 4, longest 4 tokens; 8 rows (100.0%) are cut by truncation",),
        0,
        config={"data.max_length": 4},
    ),
]

CRYPTIC = [
    Fault(
        23,
        "a missing column",
        ("(train.jsonl:1) has no column 'text'", "Did you mean 'txet'? There is: label, txet."),
        files={"train.jsonl": [{"txet": "good", "label": "a"}, {"txet": "bad", "label": "b"}]},
    ),
    Fault(24, "labels as text train by their names", ("classifier",), 0),
    Fault(
        25,
        "a label out of range",
        ("train.jsonl:3: column 'label': 7 is not a label.",),
        files={"train.jsonl": [{"text": text, "label": label} for label, text in ((0, "a"), (1, "b"), (7, "c"))]},
        config={"task": {"class_path": "TextClassification", "init_args": {"labels": ["bad", "good"]}}, **NUMBERED},
    ),
    Fault(
        26,
        "text longer than the model takes",
        ("data.max_length: 99 tokens are longer than the model takes: 64.",),
        config={"data.max_length": 99},
    ),
    Fault(
        27,
        "empty text",
        ("train.jsonl:2: column 'text': the text is missing or empty.",),
        files={"train.jsonl": [ROWS[0], {"text": " ", "label": "bad"}]},
    ),
    Fault(
        28,
        "token ids beyond the vocabulary",
        ("model.config.vocab_size: the tokenizer has", "the model's vocabulary only 10.", "Leave it out"),
        config={
            "model": {"config": {"model_type": "bert", **TINY, "vocab_size": 10}},
            "data.tokenizer": {"checkpoint": "base"},
        },
    ),
    Fault(
        28,
        "the tokenizer of another model",
        ("data.tokenizer: the tokenizer has", "the model's vocabulary only", "leave data.tokenizer.checkpoint out"),
        config={"data.tokenizer": {"checkpoint": "decoder"}},
    ),
    Fault(
        29,
        "None as text",
        ("train.jsonl:2: column 'text': the value is missing (null).",),
        files={"train.jsonl": [ROWS[0], {"text": None, "label": "bad"}]},
    ),
    Fault(
        30,
        "a corrupt line of JSON",
        ("train.jsonl:2: this is not valid JSON",),
        files={"train.jsonl": '{"text": "a", "label": "b"}\n{"text": \n'},
    ),
    Fault(
        31,
        "ragged CSV",
        ("train.csv:3: the row has 3 fields, but the header has 2: text, label.",),
        files={"train.csv": "text,label\ngood,a\nbad, very bad,b\n"},
        config=CSV,
    ),
    Fault(
        32,
        "not UTF-8",
        ("train.jsonl:2: this is not UTF-8: byte 0xe9",),
        files={"train.jsonl": b'{"text": "a", "label": "b"}\n{"text": "caf\xe9", "label": "c"}\n'},
    ),
    Fault(
        33,
        "corrupt Parquet",
        ("train.parquet: this is no Parquet file, or a damaged one",),
        make=parquet,
        config={"data.source.train": "train.parquet"},
    ),
    Fault(
        34,
        "a file with a header only",
        ("train.csv: the file has a header and no rows.",),
        files={"train.csv": "text,label\n"},
        config=CSV,
    ),
    Fault(
        35,
        "train and validation with other columns",
        ("(validation.jsonl:1) has no column 'label'", "Did you mean 'lable'?"),
        files={"validation.jsonl": [{"text": "a", "lable": "good"}]},
    ),
    Fault(
        36,
        "a monitor that nothing logs",
        ("monitor: no metric is named 'acuracy'.", "Did you mean 'accuracy'?"),
        config={"monitor": "acuracy"},
    ),
    Fault(
        37,
        "a truncated checkpoint",
        ("step-00000004", "it was cut off", "Bring one back"),
        resumes=True,
        make=cut_checkpoint,
    ),
    Fault(
        37,
        "a byte of a checkpoint is another one",
        ("step-00000004", "state.ckpt is not what was written: its SHA-256 differs", "Bring one back"),
        resumes=True,
        make=flip_byte,
    ),
    Fault(
        37,
        "a checkpoint without a manifest",
        ("step-00000004", "it has no manifest.json: it was never finished", "Bring one back"),
        resumes=True,
        make=lambda folder: (run(folder).checkpoints / "step-00000004" / "manifest.json").unlink(),
    ),
    Fault(
        37,
        "truncated safetensors",
        ("model.checkpoint: the weights in base/model.safetensors are damaged",),
        make=cut("base/model.safetensors", 3000),
    ),
    Fault(
        38,
        "a folder that cannot be written",
        ("output_dir: the run's folder file/tiny cannot be written",),
        files={"file": "x"},
        config={"output_dir": "file"},
    ),
    Fault(
        38,
        "a disk that is too small",
        ("output_dir: the disk of", "GB free, the checkpoints need about"),
        config={
            "model": {"config": {"model_type": "bert", **TINY, "hidden_size": 2**17, "num_hidden_layers": 48}},
            "data.tokenizer": {"checkpoint": "base"},
        },
    ),
    Fault(
        40,
        "a misspelled model id",
        ("model.checkpoint: nobody/bert-bsae: there is no such model", "Check the spelling of the id"),
        config={"model.checkpoint": "nobody/bert-bsae"},
    ),
    Fault(
        44,
        "a loader worker is killed",
        ("data.num_workers: a process that prepares batches", "The last checkpoint is"),
        3,
        config={**callback("KillWorkers"), "data.num_workers": 1},
        resumes=True,
    ),
    Fault(
        45,
        "out of memory in a validation",
        ("out of memory in validation batch 1 (input_ids 4 x ", "lower data.eval_batch_size", "The last checkpoint is"),
        3,
        config=callback("GreedyInValidation"),
        resumes=True,
    ),
    Fault(
        45,
        "out of memory",
        (
            "out of memory in training batch 2 of epoch 2, step 6 (input_ids 2 x ",
            "labels 2",
            "lower data.batch_size (2)",
            "The last checkpoint is",
        ),
        3,
        config=callback("Greedy"),
        resumes=True,
    ),
]

CRYPTIC += [
    Fault(
        39,
        f"the Hub answers {status}",
        (f"model.checkpoint: org/status-{status}: {said}", f"(status {status})"),
        config={"model.checkpoint": f"org/status-{status}"},
    )
    for status, said in STATUSES.items()
]

PUSHES = {
    401: (2, "the Hub does not know who you are: there is no token, or a wrong one"),
    403: (2, "you may not write there, or your token may not"),
    404: (2, "there is no such repository or branch, or you may not see it"),
    429: (3, "the Hub refuses so many requests"),
    500: (3, "the Hub fails"),
    503: (3, "the Hub fails"),
}
"""What the Hub answers to a push, the exit code, and what is said of it."""

CRYPTIC += [
    Fault(
        39,
        f"the Hub answers {status} to a push",
        (f"--repo org/status-{status}: {said} (status {status}).",),
        code,
        verb=["push", "runs/tiny", "--repo", f"org/status-{status}"],
        resumes=True,
    )
    for status, (code, said) in PUSHES.items()
]

CRYPTIC += [
    Fault(
        39,
        f"the Hub answers {status} of data",
        (
            f"data.source.path: org/status-{status}: {STATUSES[status].replace('model', 'dataset')}",
            f"(status {status})",
        ),
        config={"data.source": {"path": f"org/status-{status}"}},
    )
    for status in (401, 403, 503)
]
