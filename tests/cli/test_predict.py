from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lit_hf.cli.main import main
from lit_hf.export.package import export
from lit_hf.inference.predictor import Predictor
from tests.classifiers import LABELS, RECORD, TEXTS, classifier

RUN = "import sys; from lit_hf.cli.main import main; sys.exit(main())"


@pytest.fixture
def folder(tiny_text_model, tmp_path):
    model, task = classifier(tiny_text_model)
    export(model, task, RECORD, tmp_path / "export")
    return tmp_path / "export"


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": text, "id": index, "label": None} for index, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def predict(*options) -> int:
    return main(["predict", *map(str, options)])


def read(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_texts_become_json_lines_with_scores(folder, capsys):
    assert predict(folder, "--text", "the film is good", "--text", "x") == 0
    first, second = read(capsys.readouterr().out)
    assert first["text"] == "the film is good"
    assert first["label"] in LABELS
    assert sum(first["scores"].values()) == pytest.approx(1)
    assert second["text"] == "x"


def test_a_terminal_gets_a_table(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert predict(folder, "--text", "the film is good") == 0
    text, *scores = capsys.readouterr().out.splitlines()
    assert text == "the film is good"
    assert sorted(line.split()[0] for line in scores) == sorted(LABELS)
    values = [float(line.split()[1]) for line in scores]
    assert values == sorted(values, reverse=True)


def test_a_file_becomes_a_file_with_the_same_rows(folder, rows, tmp_path):
    assert predict(folder, "--input", rows, "--output", tmp_path / "out.jsonl", "--batch_size", 2) == 0
    predicted = read((tmp_path / "out.jsonl").read_text())
    assert [{key: row[key] for key in ("text", "id", "label")} for row in predicted] == read(rows.read_text())
    expected = list(Predictor.from_folder(folder).predict(read(rows.read_text())))
    assert [row["predicted_label"] for row in predicted] == [row["predicted_label"] for row in expected]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "out.jsonl", "rows.jsonl"]


def test_a_model_may_be_spread_over_memory_and_disk(folder, rows, tmp_path, capsys):
    assert predict(folder, "--input", rows) == 0
    expected = read(capsys.readouterr().out)
    spread = ["--device_map", '{"": "disk"}', "--offload_folder", tmp_path / "weights", "--max_memory", '{"0": "1GB"}']
    assert predict(folder, "--input", rows, *spread) == 0
    assert read(capsys.readouterr().out) == expected


def test_csv_goes_in_and_standard_output_out(folder, tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("text,id\ngood,007\nbad,NA\n")
    assert predict(folder, "--input", tmp_path / "rows.csv") == 0
    assert [(row["text"], row["id"]) for row in read(capsys.readouterr().out)] == [("good", "007"), ("bad", "NA")]


def test_standard_input_is_read(folder, rows):
    command = [sys.executable, "-c", RUN, "predict", str(folder), "--input", "-", "--output", "-"]
    with rows.open() as file:
        done = subprocess.run(command, stdin=file, capture_output=True, text=True, check=True)
    assert [row["id"] for row in read(done.stdout)] == list(range(len(TEXTS)))


def test_several_columns_are_given_as_json(tiny_text_model, tmp_path, capsys):
    model, task = classifier(tiny_text_model)
    export(model, task, {**RECORD, "init_args": {"text": ["premise", "hypothesis"]}}, tmp_path / "pair")
    pair = {"premise": "the film is good", "hypothesis": "it was fine"}
    assert predict(tmp_path / "pair", "--text", json.dumps(pair)) == 0
    (row,) = read(capsys.readouterr().out)
    assert {key: row[key] for key in pair} == pair

    assert predict(tmp_path / "pair", "--text", "only one") == 2
    assert 'Give them as JSON: --text \'{"premise": "...", "hypothesis": "..."}\'' in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "give --text"),
        (["--text", "a", "--input", "b"], "give --text"),
        (["--text", "a", "--output", "b"], "--output goes with --input"),
        (["--text", "a", "--batch_size", "0"], "0 is not above 0"),
        (["--text", "a", "--devise", "cpu"], "--devise"),
        (["--text", ""], "the text is missing or empty"),
        (["--text", "a", "--device", "abacus"], "'abacus' cannot be used"),
        (["--text", "a", "--device_map", "everywhere"], "'everywhere' is no way to spread a model"),
        (["--text", "a", "--device_map", "auto", "--device", "cpu"], "not both"),
        (["--text", "a", "--max_memory", '{"cpu": "1GB"}'], "go with --device_map"),
    ],
)
def test_bad_options_end_with_2(folder, capsys, options, message):
    assert predict(folder, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_the_input_is_not_overwritten(folder, rows, tmp_path, capsys):
    before = rows.read_bytes()
    os.link(rows, tmp_path / "link.jsonl")
    for output in (rows, tmp_path / "." / "rows.jsonl", tmp_path / "link.jsonl"):
        assert predict(folder, "--input", rows, "--output", output) == 2
        assert "the input would be overwritten" in capsys.readouterr().err
    assert rows.read_bytes() == before


@pytest.mark.parametrize("output", ["no/such/folder.jsonl", "", "out.csv"])
def test_an_output_that_cannot_be_written_is_told_first(folder, rows, tmp_path, capsys, output):
    assert predict(folder, "--input", rows, "--output", tmp_path / output) == 2
    assert "--output" in capsys.readouterr().err


def test_bad_rows_are_told_before_the_model_loads_and_leave_the_old_output(folder, rows, tmp_path, capsys):
    (tmp_path / "out.jsonl").write_text("old")
    (folder / "model.safetensors").write_bytes(b"")  # loading it would fail first
    with rows.open("a") as file:
        file.write('{"text": null}\n{"texts": "x"}\n')
    assert predict(folder, "--input", rows, "--output", tmp_path / "out.jsonl") == 2
    error = capsys.readouterr().err
    assert f"{rows}:7: column 'text': the text is missing or empty." in error
    assert f"{rows}:8: the column 'text' is missing.\n    Did you mean 'texts'?" in error
    assert (tmp_path / "out.jsonl").read_text() == "old"


def test_a_truncated_model_is_named(folder, capsys):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert predict(folder, "--text", "a") == 2
    assert str(path) in capsys.readouterr().err


def test_a_base_model_is_refused(tiny_text_model, capsys):
    assert predict(tiny_text_model, "--text", "a") == 2
    assert "BertModel is not a text classifier" in capsys.readouterr().err


def test_a_failure_in_the_middle_leaves_the_old_output(folder, rows, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    whole = Predictor.predict

    def fails_late(self, *arguments):
        yield from list(whole(self, *arguments))[:3]
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "predict", fails_late)
    assert predict(folder, "--input", rows, "--output", out) == 130
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "out.jsonl", "rows.jsonl"]


def test_a_terminated_predict_leaves_nothing(folder, tmp_path):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"text": "the film is good and the plot is fine"}\n' * 100_000)
    command = [sys.executable, "-c", RUN, "predict", str(folder), "--input", str(rows), "--output", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out.jsonl.*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "rows.jsonl"]


def test_odd_text_goes_through_unharmed(folder, tmp_path):
    line = '{"text": "é한\\u2028 \\ud83d\\ude00", "other": "\\ud800"}'
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    assert predict(folder, "--input", tmp_path / "rows.jsonl", "--output", tmp_path / "out.jsonl") == 0
    (row,) = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().split("\n") if line)
    assert {key: row[key] for key in ("text", "other")} == json.loads(line)


def test_nothing_of_the_trainer_is_imported(folder):
    code = (
        "import sys; from lit_hf.cli.main import main; code = main(); "
        "print([name for name in ('lightning', 'jsonargparse', 'wandb') if name in sys.modules], file=sys.stderr); "
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "predict", str(folder), "--text", "a"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_a_model_of_the_hub_is_predicted_with(hub, folder, capsys):
    hub.add_model("someone/classifier", folder)
    assert predict("someone/classifier", "--text", "good") == 0
    assert read(capsys.readouterr().out)[0]["label"] in LABELS


def test_a_misspelled_folder_is_told(hub, capsys):
    assert predict("runs/nothing", "--text", "good") == 2
    assert "runs/nothing" in capsys.readouterr().err
