import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig

from lit_hf.cli.main import main
from tests import preferences
from tests.conversations import CHATML, save_chat_model


@pytest.fixture
def in_folder(folder, messages_restored):
    return folder


def write(folder, name, rows, task, model, **data):
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "task": task,
        "model": {"checkpoint": str(model)},
        "data": {"source": {"train": f"{name}.jsonl", "validation": f"{name}.jsonl"}, **data},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return f"{name}.yaml"


CHATS = [
    {"prompt": "What is red?", "completion": "A colour."},
    {"prompt": "And blue?", "completion": "Another colour. And another colour."},
]


@pytest.fixture
def chat(in_folder, tmp_path_factory):
    model = save_chat_model(tmp_path_factory.mktemp("chat"))
    task = {"class_path": "Chat", "init_args": {"prompt": "prompt", "completion": "completion"}}
    return write(in_folder, "chat", CHATS, task, model)


def inspect(config, *options):
    return main(["inspect", "-c", config, *options])


def test_trained_seen_and_padding_tokens_are_told_apart(chat, capsys):
    assert inspect(chat) == 0
    shown = capsys.readouterr().out
    assert "[[trained]]  seen, not trained  <padding>" in shown
    assert "--- train 1: chat.jsonl:1\n" in shown
    question = "<|im_start|>user\nWhat is red?<|im_end|>\n<|im_start|>assistant\n"
    assert f"{question}[[A colour.<|im_end|>]]\n<<|im_end|> x " in shown
    assert "[[Another colour. And another colour.<|im_end|>]]" in shown
    assert "train: 2 inputs; median" in shown
    assert "tokens are trained (" in shown
    assert "--- train 3" not in shown


def test_the_shares_are_counted(chat, capsys):
    inspect(chat, "-n", "1")
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if line.startswith("input_ids")]
    assert line.endswith(" 4 trained (24%)")
    assert "--- train 2" not in shown


def test_a_cut_row_is_told_and_fit_s_options_count(chat, capsys):
    assert inspect(chat, "--data.max_length", "20", "--split", "validation") == 0
    shown = capsys.readouterr().out
    first, second = shown.split("--- validation 2")
    assert "cut after 20 tokens" in second
    assert "cut after" not in first
    assert "1 rows (50.0%) are cut by truncation" in second


def test_no_weights_are_read(chat, capsys):
    config = yaml.safe_load(Path(chat).read_text())
    (Path(config["model"]["checkpoint"]) / "model.safetensors").unlink()
    assert inspect(chat) == 0


def test_a_label_is_shown_by_its_name(in_folder, tiny_text_model, capsys):
    rows = [{"text": "the film was good", "label": "pos"}, {"text": "the film was bad", "label": "neg"}]
    config = write(in_folder, "text", rows, {"class_path": "TextClassification"}, tiny_text_model)
    assert inspect(config) == 0
    shown = capsys.readouterr().out
    assert "[CLS] the film was good [SEP]\nlabels: pos (1)\n" in shown
    assert "labels: neg (0)" in shown
    assert "trained (" not in shown


def test_a_word_s_tag_stands_beside_its_first_piece(in_folder, tiny_text_model, capsys):
    rows = [{"tokens": ["the", "plots"], "tags": ["O", "B-X"]}, {"tokens": ["good"], "tags": ["O"]}]
    task = {"class_path": "TokenClassification", "init_args": {"tokens": "tokens", "tags": "tags"}}
    config = write(in_folder, "tags", rows, task, tiny_text_model)
    assert inspect(config) == 0
    shown = capsys.readouterr().out
    assert "[CLS] [[the/O]] [[plot/B-X]] ##s [SEP]" in shown
    assert "<[PAD] x 2>" in shown


PAIRS = [
    {"prompt": "is it night ", "chosen": "yes good", "rejected": "no"},
    {"prompt": "say it ", "chosen": "yes", "rejected": "no"},
]


@pytest.fixture
def pair_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    preferences.tokenizer().save_pretrained(folder)
    AutoConfig.for_model(**preferences.MODEL, vocab_size=26).save_pretrained(folder)
    return folder


def test_both_sides_of_a_pair_are_shown_with_what_is_trained_of_them(in_folder, pair_model, capsys):
    config = write(in_folder, "pairs", PAIRS, {"class_path": "Preference"}, pair_model)
    assert inspect(config) == 0
    shown = capsys.readouterr().out
    first, second = shown.split("--- train 2")
    assert "chosen_input_ids: 6 tokens, 3 trained (50%)\nis it night[[ yes good </s>]]\n" in first
    assert "rejected_input_ids: 5 tokens, 2 trained (40%), 1 padding\nis it night[[ no </s>]]<<pad> x 1>\n" in first
    assert "say it[[ yes </s>]]<<pad> x 2>\n" in second
    assert "prompt_length" not in shown


def test_of_a_scored_pair_both_sides_are_seen_and_none_of_their_tokens_is_trained(in_folder, pair_model, capsys):
    task = {"class_path": "RewardModel", "init_args": {"prompt": "prompt"}}
    config = write(in_folder, "pairs", PAIRS, task, pair_model)
    assert inspect(config, "-n", "1") == 0
    shown = capsys.readouterr().out
    assert "chosen_input_ids: 5 tokens\nis it night yes good\n" in shown
    assert "rejected_input_ids: 4 tokens, 1 padding\nis it night no<<pad> x 1>\n" in shown


def test_a_terminal_gets_colours_and_no_marks(chat):
    # a process of its own: rich decides on colours by the environment of its import
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "lit_hf", "inspect", "-c", chat, "-n", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "\x1b[1;32mA colour.<|im_end|>\x1b[0m" in done.stdout
    assert "[[" not in done.stdout


def test_nothing_in_the_data_steers_the_terminal(in_folder, tmp_path_factory, capsys):
    model = save_chat_model(tmp_path_factory.mktemp("chat"))
    task = {"class_path": "Chat", "init_args": {"prompt": "prompt", "completion": "completion"}}
    rows = [{"prompt": "\x1b[2Jgone", "completion": "[bold]kept[/bold]"}]
    assert inspect(write(in_folder, "odd", rows, task, model)) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\\x1b[2Jgone" in shown
    assert "[[[bold]kept[/bold]<|im_end|>]]" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "test"], "there is no test split"),
        (["--split", "dev"], "invalid choice: 'dev'"),
        (["-n", "0"], "0 is not above 0"),
        (["--data.batchsize", "3"], "data.batchsize"),
    ],
)
def test_bad_options_end_with_2(chat, capsys, options, message):
    assert inspect(chat, *options) == 2
    assert message in capsys.readouterr().err


def test_its_help_has_its_own_options(capsys):
    with pytest.raises(SystemExit) as done:
        main(["inspect", "--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: lit-hf inspect -c <file>")
    assert "-n <rows>" in shown and "--split <name>" in shown


def test_the_template_may_come_from_a_file(in_folder, tmp_path_factory, capsys):
    model = save_chat_model(tmp_path_factory.mktemp("chat"), template=None)
    (in_folder / "mine.jinja").write_text(CHATML.replace("im_start|>", "im_start|>the "))
    task = {"class_path": "Chat", "init_args": {"prompt": "prompt", "completion": "completion"}}
    config = write(in_folder, "chat", CHATS, task, model, tokenizer={"chat_template": "mine.jinja"})
    assert inspect(config) == 0
    assert "<|im_start|>the user" in capsys.readouterr().out
