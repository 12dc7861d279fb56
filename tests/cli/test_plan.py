import json
import resource
import subprocess
import sys

import pytest
import yaml

from lit_hf.cli.main import main

LLAMA_70B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "max_position_embeddings": 8192,
}
"""Grattafiori et al., "The Llama 3 Herd of Models", 2024, table 3: 80 layers, 8,192 wide, 28,672 in between, 64 heads
with 8 for keys and values, 128,000 words (in the released config with 256 special ones)."""

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}


@pytest.fixture
def in_folder(folder, messages_restored):
    return folder


def write(folder, model, rows=40, block_length=32, **trainer):
    texts = [f"row {number} says that the sum of {number} and {number} is {2 * number}." for number in range(rows)]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    config = {
        "task": {"class_path": "CausalLM", "init_args": {"text": "text", "block_length": block_length}},
        "model": {"config": model},
        "data": {
            "source": {"train": "rows.jsonl", "validation": "rows.jsonl"},
            "tokenizer": {"train": {"vocab_size": 300}},
            "batch_size": 4,
        },
        "trainer": {"max_epochs": 2, **trainer},
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(config))
    return "plan.yaml"


def plan(capsys, config, *options):
    assert main(["plan", "-c", config, "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_tokens_and_steps_are_those_of_the_data(in_folder, capsys):
    values = plan(capsys, write(in_folder, TINY, accumulate_grad_batches=2), "--no-changes")
    data, time = values["data"], values["time"]
    assert data["rows_in_all"] == 40
    assert (data["rows"], data["length"]) == (4, 32)
    assert 0 < data["padding"] < 0.05  # the last block is short
    assert data["notes"] == []
    assert time["steps"] == -(-data["batches"] // 2)
    assert time["total_steps"] == 2 * time["steps"]
    assert time["total"] == pytest.approx(time["step"] * time["total_steps"])


def test_parameters_and_their_memory(in_folder, capsys):
    values = plan(capsys, write(in_folder, TINY), "--no-changes")
    words = 300
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64
    count = 2 * words * 64 + 2 * layer + 64
    assert values["parameters"] == {"trainable": count, "total": count, "by_dtype": {"float32": count}}
    memory = values["memory"]["one_device"]
    assert memory["gradients"] == 4 * count
    assert memory["optimizer"] == pytest.approx(8 * count, rel=0.01)
    (way,) = values["memory"]["layouts"]
    assert way["name"] == "one device"
    assert way["total"] == memory["total"]
    assert way["fits"]


def test_devices_share_the_work(in_folder, capsys):
    config = write(in_folder, TINY)
    alone = plan(capsys, config, "--no-changes", "--gpu", "h100-80gb")
    values = plan(capsys, config, "--no-changes", "--gpu", "h100-80gb", "--devices", "2", "--nodes", "2")
    assert [way["name"] for way in values["memory"]["layouts"]] == ["DDP", "FSDP2", "tensor parallel"]
    assert values["machine"]["network"] == 50e9
    assert values["time"]["steps"] == -(-alone["time"]["steps"] // 4)
    assert values["time"]["flops"] == 4 * alone["time"]["flops"]
    gradients = values["memory"]["one_device"]["gradients"]
    assert values["time"]["sending"] == pytest.approx(2 * 3 / 4 * gradients / 50e9)


def test_what_compilation_saves_is_said_to_be_left_out(in_folder, capsys):
    config = write(in_folder, TINY)
    assert plan(capsys, config, "--no-changes")["notes"] == []
    (note,) = plan(capsys, config, "--no-changes", "--model.compile", "true")["notes"]
    assert "planned is without it" in note
    assert main(["plan", "-c", config, "--no-changes", "--model.compile", "true"]) == 0
    assert note in capsys.readouterr().out


def test_the_strategy_of_the_config_comes_first(in_folder, capsys):
    config = write(in_folder, TINY, strategy="fsdp2")
    values = plan(capsys, config, "--no-changes", "--gpu", "t4", "--devices", "4")
    first = values["memory"]["layouts"][0]
    assert first["name"] == "FSDP2"
    assert first["optimizer"] == values["memory"]["one_device"]["optimizer"] / 4


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        (["--gpu", "h100-80gb"], "bf16-mixed"),
        (["--gpu", "t4"], "32-true"),
        (["--gpu", "h100-80gb", "--trainer.precision", "16"], "16-mixed"),
        (["--trainer.accelerator", "cpu"], "32-true"),
    ],
)
def test_a_config_without_a_precision_is_planned_in_the_one_that_fit_takes(in_folder, options, precision, capsys):
    assert plan(capsys, write(in_folder, TINY), "--no-changes", *options)["precision"] == precision


def test_the_network_and_the_efficiency_can_be_given(in_folder, capsys):
    config = write(in_folder, TINY)
    usual = plan(capsys, config, "--no-changes", "--gpu", "a100-80gb", "--nodes", "2")
    other = plan(
        capsys, config, "--no-changes", "--gpu", "a100-80gb", "--nodes", "2", "--network", "100", "--efficiency", "0.2"
    )
    assert other["time"]["sending"] == pytest.approx(usual["time"]["sending"] * 25 / 12.5)
    assert other["time"]["computing"] == pytest.approx(2 * usual["time"]["computing"])


def test_data_of_the_hub_that_cannot_be_loaded_is_replaced_by_full_rows(in_folder, hub, capsys):
    config = write(in_folder, {**TINY, "vocab_size": 300})
    values = plan(
        capsys, config, "--no-changes", "--data.source.path", "nobody/nothing", "--data.source.train", "train"
    )
    assert values["data"]["batches"] is None
    assert values["data"]["tokens"] == 4 * 32
    (note,) = values["data"]["notes"]
    assert "(nobody/nothing: there is no such dataset" in note
    assert "every row is taken to have 32 tokens" in note


def test_a_fault_of_local_data_is_an_error(in_folder, capsys):
    assert main(["plan", "-c", write(in_folder, TINY), "--data.source.train", "none.jsonl"]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_an_unknown_gpu_is_told_before_anything_is_read(in_folder, capsys):
    assert main(["plan", "-c", "none.yaml", "--gpu", "h1000"]) == 2
    assert "There is: a10-24gb" in capsys.readouterr().err


def test_a_type_that_the_gpu_has_not_is_refused(in_folder, capsys):
    config = write(in_folder, TINY, precision="bf16-mixed")
    assert main(["plan", "-c", config, "--gpu", "t4"]) == 2
    assert "trainer.precision: t4-16gb has no bfloat16." in capsys.readouterr().err


@pytest.mark.parametrize("fault", [None, "data.max_length"])
def test_rows_on_a_hub_that_cannot_be_had_are_assumed_but_no_other_fault(hub, in_folder, capsys, fault):
    hub.fail("org/rows", 503)
    config = write(in_folder, {**TINY, "vocab_size": 300})
    values = yaml.safe_load((in_folder / config).read_text())
    values["data"]["source"] = {"path": "org/rows"}
    (in_folder / config).write_text(yaml.safe_dump(values))
    code = main(["plan", "-c", config, "--no-changes", *([f"--{fault}", "0"] if fault else [])])
    told = capsys.readouterr().err
    assert code == (2 if fault else 0)
    assert (f"{fault}: 0 is too small" if fault else "the data cannot be loaded (org/rows: the Hub fails") in told


BILLION = {**TINY, "hidden_size": 2048, "num_hidden_layers": 24, "intermediate_size": 5504, "num_attention_heads": 16}


def test_the_smallest_change_that_makes_it_fit_is_named(in_folder, capsys):
    config = write(in_folder, {**BILLION, "vocab_size": 32000})
    values = plan(capsys, config, "--no-data", "--gpu", "t4")
    assert not values["memory"]["layouts"][0]["fits"]
    changes = {change["names"][0]: change for change in values["memory"]["changes"]}
    assert all(len(change["names"]) == 1 for change in values["memory"]["changes"])
    assert not changes["gradient checkpointing"]["fits"]  # weights, gradients and states alone are 16 bytes each
    assert changes["LoRA"]["total"] > changes["LoRA on 8 bits"]["total"] > changes["LoRA on 4 bits (QLoRA)"]["total"]
    (first,) = next(change["names"] for change in values["memory"]["changes"] if change["fits"])
    assert first == "8-bit AdamW"
    assert f"The smallest change that makes it fit: {first} (" in values["advice"]
    assert values["advice"].endswith("Add to the command: --model.optimizer bitsandbytes.optim.AdamW8bit")


def test_packed_batches_are_planned_by_their_tokens(in_folder, capsys):
    config = write(in_folder, TINY, rows=60)
    data = plan(capsys, config, "--no-changes", "--data.packing", "true", "--data.batch_tokens", "200")["data"]
    assert data["packed"] and data["batch_tokens"] == 200
    assert data["rows"] == 10  # documents of 17 to 19 tokens
    assert 180 < data["length"] <= 200
    assert data["batches"] == 6
    assert data["padding"] == 0
    assert 17 * 60 < data["tokens"] * data["batches"] <= 19 * 60


@pytest.mark.parametrize("packing", ["true", "false"])
def test_a_number_of_tokens_makes_a_batch_without_data_too(packing, in_folder, capsys):
    config = write(in_folder, {**TINY, "vocab_size": 300})
    options = ["--no-data", "--no-changes", "--data.batch_tokens", "200", "--data.packing", packing]
    data = plan(capsys, config, *options)["data"]
    assert data["rows"] == 6  # of 32 tokens
    assert data["length"] == (192 if packing == "true" else 32)
    assert data["tokens"] == 192


def test_the_page_is_for_people(in_folder, capsys):
    assert main(["plan", "-c", write(in_folder, TINY), "--gpu", "h100-80gb", "--devices", "2"]) == 0
    shown = capsys.readouterr().out
    assert "machine      2 x h100-80gb, 74.5 GiB each, 90% of it may be filled\n" in shown
    assert "at 40% of 989 TFLOP/s" in shown
    assert "It fits: " in shown
    assert "tensor parallel is shown to compare: lit-hf trains with DDP and FSDP2" in shown
    for word in "DDP", "FSDP2", "tensor parallel", "LoRA on 4 bits (QLoRA)", "gradient checkpointing":
        assert word in shown


TASKS = {
    "MaskedLM": ({"text": "text"}, "bert"),
    "TextClassification": ({"text": "text"}, "bert"),
    "TokenClassification": ({}, "bert"),
    "QuestionAnswering": ({}, "bert"),
    "MultipleChoice": ({"context": "a", "choices": ["b", "c"]}, "bert"),
    "Embedding": ({}, "bert"),
    "Chat": ({"prompt": "p", "completion": "c"}, "llama"),
    "Preference": ({}, "llama"),
    "RewardModel": ({}, "llama"),
    "Seq2Seq": ({"source": "a", "target": "b"}, "t5"),
}

BERT = {
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 300,
}
T5 = {"model_type": "t5", "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "vocab_size": 300}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_planned_without_its_data(task, in_folder, capsys):
    arguments, kind = TASKS[task]
    model = {"bert": BERT, "llama": {**TINY, "vocab_size": 300}, "t5": T5}[kind]
    config = {
        "task": {"class_path": task, "init_args": arguments},
        "model": {"config": model},
        "data": {"source": {"train": "none.jsonl"}, "batch_size": 2, "max_length": 16},
    }
    (in_folder / "task.yaml").write_text(yaml.safe_dump(config))
    values = plan(capsys, "task.yaml", "--no-data", "--no-changes", "--gpu", "a10")
    memory = values["memory"]["one_device"]
    assert memory["activations"] > 0
    assert memory["gradients"] > 0
    assert values["time"]["flops"] > 0


def test_llama_70b_is_planned_in_seconds_and_without_weights(folder):
    (folder / "llama.yaml").write_text(
        yaml.safe_dump(
            {
                "task": {"class_path": "CausalLM", "init_args": {"text": "text", "block_length": 8192}},
                "model": {"config": LLAMA_70B},
                "data": {"source": {"train": "none.jsonl"}, "batch_size": 1},
                "trainer": {"precision": "bf16-mixed"},
            }
        )
    )
    options = ["-c", "llama.yaml", "--no-data", "--json", "--gpu", "h100-80gb"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "lit_hf", "plan", *options, "--devices", "8", "--nodes", "4"],
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    values = json.loads(done.stdout)
    assert values["parameters"]["total"] == 70_553_706_496
    assert values["memory"]["one_device"]["weights"] == pytest.approx(4 * 70_553_706_496, rel=0.001)
    assert not values["memory"]["layouts"][0]["fits"]
    least = values["memory"]["changes"][-1]
    assert (least["names"], least["fits"]) == (["gradient checkpointing", "FSDP2", "LoRA"], True)
    in_full = next(one for one in values["memory"]["changes"] if one["names"] == ["gradient checkpointing", "FSDP2"])
    # a 32nd of weights, gradients and two moments in float32, what is put together of them, and the activations;
    # with rows of 4,096 tokens it fits, too
    assert 16 * 70_553_706_496 / 32 < in_full["total"] < 80e9
    assert "No single change makes it fit" in values["advice"]
    assert "--trainer.strategy fsdp2 -c configs/methods/lora.yaml" in values["advice"]
    assert after.ru_maxrss * 1024 < 2e9
    # of the processor, as the machine may have other work
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20
