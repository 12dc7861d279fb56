"""`lit-hf predict`: rows or texts in, the same with predictions out."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lit_hf.cli.generation import can_stream, set_generation, stream
from lit_hf.cli.options import Parser, positive
from lit_hf.errors import InputError, LitHFError, Problem
from lit_hf.run import RunFolder
from lit_hf.writing import replacing

if TYPE_CHECKING:
    from lit_hf.inference.predictor import Predictor
    from lit_hf.inference.rows import Line
    from lit_hf.models.offload import Offload
    from lit_hf.task import Task

logger = logging.getLogger(__name__)

STANDARD = "-"
"""Standard input or output, as a file name."""


def run(argv: Sequence[str]) -> None:
    """Predict what the options say."""
    parser = _parser()
    options = parser.parse_args(argv)
    if bool(options.text) == bool(options.input):
        parser.error("give --text (as often as there are texts) or --input FILE.")
    if options.device_map is None and (options.max_memory or options.offload_folder):
        parser.error("--max_memory and --offload_folder go with --device_map.")
    if options.device_map is not None and options.device:
        parser.error("give --device or --device_map, not both.")
    if options.output and not options.input:
        parser.error("--output goes with --input.")
    if options.safe_config and options.trust_remote_code:
        parser.error("give --safe-config or --trust_remote_code, not both.")
    _check_output(options.input, options.output)
    folder = _exported(parser.folder(options), options.safe_config)
    if options.trust_remote_code:
        logger.warning("--trust_remote_code is on: code that %s names is run.", folder)
    with _terminable():
        if options.input:
            _predict_file(folder, options)
        else:
            _predict_texts(folder, options)


def _parser() -> Parser:
    parser = Parser("predict", "Predict texts or the rows of a file. Rows keep their columns, order and count.")
    parser.add_folder("folder of a run or of an exported model, or a model's id on the Hub")
    parser.add_argument(
        "--text", action="append", help='a text; for a task with several columns JSON: \'{"premise": "..."}\''
    )
    parser.add_argument("--input", help="file of rows: .jsonl, .csv or .tsv, or - for JSON lines from standard input")
    parser.add_argument("--output", help="file of JSON lines to write (default: - for standard output)")
    parser.add_argument("--batch_size", type=positive, default=32, help="rows that go through the model at once")
    parser.add_argument("--max_new_tokens", type=positive, help="most tokens that a task that generates text writes")
    parser.add_argument(
        "--generation",
        type=_object,
        default={},
        help="how such a task generates, as JSON of transformers' GenerationConfig: '{\"num_beams\": 4}'",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the first GPU if there is one)")
    parser.add_argument(
        "--device_map",
        type=_device_map,
        help="spread a model that is larger than a device: auto, or JSON of modules and devices (0, 'cpu', 'disk')",
    )
    parser.add_argument(
        "--max_memory",
        type=_object,
        default={},
        help='the most that devices take then, as JSON: \'{"0": "20GiB", "cpu": "60GiB"}\'',
    )
    parser.add_argument("--offload_folder", type=Path, help="folder for weights that go to the disk then")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run a task's or a model's code from outside lit-hf"
    )
    parser.add_safe_config()
    return parser


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text} is no JSON object: write '{{\"num_beams\": 4}}'.")
    return value


def _device_map(text: str) -> str | dict[str, Any]:
    return _object(text) if text.startswith("{") else text


def _check_output(source: str | None, target: str | None) -> None:
    """Find before the work what would stop it at its end."""
    if target in (None, STANDARD):
        return
    path = Path(str(target))
    if path.is_dir() or not path.parent.is_dir():
        what = "this is a folder." if path.is_dir() else f"there is no folder {path.parent}."
        raise InputError(Problem("--output", what, "Give a file in a folder that is there."))
    if path.suffix in (".csv", ".tsv"):
        raise InputError(Problem("--output", "scores do not fit into a table.", "Name it .jsonl: it is JSON lines."))
    if source not in (None, STANDARD) and path.exists() and path.samefile(str(source)):
        raise InputError(Problem("--output", "the input would be overwritten.", "Give another file."))


def _exported(folder: str, safe: bool) -> Path:
    """Return an exported folder; a run that has none of its best checkpoint is exported first."""
    from lit_hf.cli.export import current_export
    from lit_hf.models.folder import fetch

    run = RunFolder(folder)
    return current_export(run, safe=safe) if run.exists() else fetch(folder)


def _predict_texts(folder: Path, options: argparse.Namespace) -> None:
    from lit_hf.inference.manifest import read_task
    from lit_hf.inference.rows import Line, check

    task = read_task(folder, trust_remote_code=options.trust_remote_code)
    set_generation(task, options.generation, options.max_new_tokens)
    lines = [Line(number, _row(text, task)) for number, text in enumerate(options.text, start=1)]
    columns = check(lines, task, "--text")
    predictor = _load(folder, task, options)
    if len(lines) == 1 and sys.stdout.isatty() and can_stream(predictor.model, task):
        stream(predictor, lines[0].row)
        return
    for line, prediction in zip(lines, predictor.predict((line.row for line in lines), columns), strict=True):
        print(_table(line.row, prediction) if sys.stdout.isatty() else _json(prediction))


def _predict_file(folder: Path, options: argparse.Namespace) -> None:
    from lit_hf.inference.manifest import read_task
    from lit_hf.inference.rows import check, read

    task = read_task(folder, trust_remote_code=options.trust_remote_code)
    set_generation(task, options.generation, options.max_new_tokens)
    with _seekable(options.input) as path:
        columns = check(read(path), task, options.input)
        predictor = _load(folder, task, options)
        predictions = map(_json, predictor.predict(_rows(read(path)), columns))
        if options.output in (None, STANDARD):
            for text in predictions:
                print(text)
        else:
            count = _write(Path(options.output), predictions)
            logger.info("predicted %d rows: %s", count, options.output)


def _load(folder: Path, task: Task, options: argparse.Namespace) -> Predictor:
    from lit_hf.inference.predictor import Predictor

    offload = _offload(options)
    return Predictor.from_folder(folder, task, options.device, options.batch_size, options.trust_remote_code, offload)


def _offload(options: argparse.Namespace) -> Offload | None:
    from lit_hf.models.offload import Offload

    if options.device_map is None:
        return None
    limits = {int(key) if key.isdigit() else key: value for key, value in options.max_memory.items()}
    return Offload(options.device_map, limits or None, options.offload_folder)


def _rows(lines: Iterable[Line]) -> Iterator[dict[str, Any]]:
    return (line.row for line in lines)


def _row(text: str, task: Task) -> dict[str, Any]:
    if len(task.input_columns) == 1:
        return {task.input_columns[0]: text}
    try:
        row = json.loads(text)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        example = json.dumps(dict.fromkeys(task.input_columns, "..."))
        what = f"the task reads {len(task.input_columns)} columns: {', '.join(task.input_columns)}."
        raise InputError(Problem("--text", what, f"Give them as JSON: --text '{example}'"))
    return row


@contextmanager
def _seekable(name: str) -> Iterator[Path]:
    """Give a file that can be read twice: once to check it, once to predict."""
    if name != STANDARD:
        yield Path(name)
        return
    with tempfile.NamedTemporaryFile(prefix="lit-hf-", suffix=".jsonl") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield Path(file.name)


def _write(path: Path, lines: Iterable[str]) -> int:
    count = 0
    try:
        with replacing(path) as file:
            for line in lines:
                file.write(line + "\n")
                count += 1
    except OSError as error:
        raise LitHFError(Problem(str(path), f"the predictions cannot be written: {error.strerror}.")) from error
    return count


def _json(row: dict[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, in a column that nobody reads, has no UTF-8: it goes out as it came in, escaped.
        return json.dumps(row)
    return text


def _table(row: dict[str, Any], prediction: dict[str, Any]) -> str:
    """Return a prediction for people: the text, and below it the scores, the highest first."""
    added = {key: value for key, value in prediction.items() if key not in row}
    scores = added.get("scores")
    shown = sorted(scores.items(), key=lambda item: -item[1])[:5] if isinstance(scores, dict) else list(added.items())
    width = max((len(name) for name, _ in shown), default=0)
    values = (f"{value:.3f}" if isinstance(value, float) else str(value) for _, value in shown)
    lines = [f"  {name:<{width}}  {value}" for (name, _), value in zip(shown, values, strict=True)]
    return "\n".join([" | ".join(map(str, row.values())), *lines])


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind as an interrupt does, so that no temporary file is left."""

    def stop(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
