import csv
import json

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from lit_hf.cli.main import main
from lit_hf.run import RunFolder
from tests.conversations import CHATML, save_chat_model

CHATS = [("What is red?", "A colour."), ("And blue?", "Another colour.")]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run that has learnt two answers by heart, from a model without a template."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}
        for question, answer in CHATS
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows * 12)))
    (tmp_path / "chatml.jinja").write_text(CHATML)
    config = {
        "name": "chat",
        "task": {
            "class_path": "Chat",
            "init_args": {"messages": "conversations", "system": "Be brief.", "generation": {"max_new_tokens": 12}},
        },
        "model": {
            "checkpoint": str(save_chat_model(tmp_path / "model", template=None)),
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
        "data": {
            "source": {"train": "chats.jsonl", "validation": "chats.jsonl"},
            "tokenizer": {"chat_template": "chatml.jinja"},
            "batch_size": 6,
        },
        "trainer": {"max_epochs": 16, "accelerator": "cpu"},
    }
    (tmp_path / "chat.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "-c", "chat.yaml"]) == 0
    return RunFolder("runs/chat")


def test_a_chat_model_learns_answers_and_its_export_gives_them_everywhere(run, capsys):
    with run.metrics.open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert losses[-1] < losses[0] / 4
    assert float([row["val/token_accuracy"] for row in rows if row["val/token_accuracy"]][-1]) > 0.9
    assert AutoTokenizer.from_pretrained(run.export).chat_template == CHATML
    capsys.readouterr()

    answers = {}
    for question, _ in CHATS:
        assert main(["predict", "runs/chat", "--text", question]) == 0
        answers[question] = json.loads(capsys.readouterr().out)["generated_text"]
    assert answers == dict(CHATS)

    chat = pipeline("text-generation", model=str(run.export))
    for question, answer in answers.items():
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
        (generated,) = chat(messages)
        assert generated["generated_text"][-1] == {"role": "assistant", "content": answer}

    model = AutoModelForCausalLM.from_pretrained(run.export)
    assert model.generation_config.max_new_tokens == 12
    assert model.generation_config.eos_token_id == [AutoTokenizer.from_pretrained(run.export).eos_token_id]


def test_a_file_of_conversations_is_answered_in_place_of_its_last_turns(run, capsys, tmp_path):
    rows = [
        {"conversations": [{"from": "human", "value": "What is red?"}, {"from": "gpt", "value": "unread"}], "id": 1},
        {"conversations": [{"from": "human", "value": "And blue?"}], "id": 2},
    ]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    capsys.readouterr()
    assert main(["predict", "runs/chat", "--input", "asked.jsonl"]) == 0
    predicted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["generated_text"] for row in predicted] == ["A colour.", "Another colour."]
    assert [{key: row[key] for key in ("conversations", "id")} for row in predicted] == rows

    (tmp_path / "bad.jsonl").write_text('{"conversations": [{"from": "bard", "value": "a"}]}')
    assert main(["predict", "runs/chat", "--input", "bad.jsonl"]) == 2
    assert "turn 1: the role 'bard' is not known." in capsys.readouterr().err


def test_faults_of_rows_are_told_with_their_lines(run, capsys, tmp_path):
    rows = [
        [{"role": "user", "content": "a"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}],
    ]
    (tmp_path / "bad.jsonl").write_text("\n".join(json.dumps({"conversations": row}) for row in rows))
    options = ["--name", "bad", "--data.source.train", "bad.jsonl"]
    assert main(["fit", "-c", "chat.yaml", *options]) == 2
    told = capsys.readouterr().err
    assert "bad.jsonl:1: column 'conversations': there is no assistant turn" in told
    assert "bad.jsonl:2: column 'conversations': turn 2: the assistant turn is empty." in told
