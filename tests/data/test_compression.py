from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pytest

from lit_hf.data.compression import extension, is_compressed
from lit_hf.data.sources import Source, load_splits
from lit_hf.errors import InputError

OPENERS = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
JSON = '{"text": "a b", "label": 0}\n\n{"text": "c", "label": 1}\n{"text": "d", "label": 0}\n'
TEXTS = {
    "jsonl": JSON,
    "json": '[{"text": "a b"}, {"text": "c"}, {"text": "d"}]',
    "csv": 'text,label\n"a b",0\n\nc,1\nd,0\n',
    "tsv": "text\tlabel\na b\t0\n\nc\t1\nd\t0\n",
    "txt": "a b\nc\nd\n",
}
LINES = {"jsonl": (1, 3, 4), "csv": (2, 4, 5), "tsv": (2, 4, 5), "txt": (1, 2, 3)}


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    with OPENERS[path.suffix[1:]](path, "wt", encoding="utf-8") as file:
        file.write(text)
    return str(path)


def problem(path: str) -> str:
    with pytest.raises(InputError) as caught:
        load_splits(Source(train=path))
    (found,) = caught.value.problems
    return f"{found.where}: {found.what}"


@pytest.mark.parametrize("compression", OPENERS)
@pytest.mark.parametrize("kind", TEXTS)
def test_compressed_files_are_read_and_their_rows_keep_their_lines(tmp_path: Path, kind: str, compression: str) -> None:
    path = write(tmp_path, f"rows.{kind}.{compression}", TEXTS[kind])

    split = load_splits(Source(train=path, validation_share=0), ["train"])["train"]

    assert split.rows["text"][:] == ["a b", "c", "d"]
    places = [f"{path}:{line}" for line in LINES[kind]] if kind in LINES else [f"{path} row {row}" for row in range(3)]
    assert [split.place(row) for row in range(3)] == places


def test_faults_in_compressed_files_are_told_with_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl.gz", '{"text": "a"}\n{"text": \n')
    table = write(tmp_path, "rows.csv.gz", "text,label\na,1\nb\n")

    assert problem(path).startswith(f"{path}:2: this is not valid JSON")
    assert problem(table).startswith(f"{table}:3: the row has 1 fields, but the header has 2")


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz", "rows.jsonl.bz2", "rows.csv.xz"])
def test_a_damaged_file_is_told(tmp_path: Path, name: str) -> None:
    path = Path(write(tmp_path, name, TEXTS[name.split(".")[1]] * 100))
    path.write_bytes(path.read_bytes()[:-20])

    assert problem(str(path)).startswith(f"{path}: the compressed file is damaged: ")


def test_a_folder_may_hold_compressed_files(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl.gz", JSON)
    write(tmp_path, "dev-00001.jsonl.gz", JSON)

    splits = load_splits(Source(path=str(tmp_path)))

    assert {name: len(split.rows) for name, split in splits.items()} == {"train": 3, "validation": 3}


def test_what_compresses_itself_is_not_compressed_again(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.parquet.gz", "x")

    assert problem(path).startswith(f"data.source.train: {path}: the extension does not tell the format.")


def test_the_extension_is_that_of_the_format() -> None:
    assert [extension(Path(name)) for name in ("a.JSONL.GZ", "a.b.csv", "a.gz", "b")] == [".jsonl", ".csv", "", ""]
    assert is_compressed(Path("a.csv.xz")) and not is_compressed(Path("a.csv"))
