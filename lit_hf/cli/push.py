"""`lit-hf push`: a run's best model, on the Hugging Face Hub."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

from lit_hf.cli.export import current_export
from lit_hf.cli.options import Parser
from lit_hf.errors import InputError, Problem, holds_secret, raise_problems
from lit_hf.export.upload import upload
from lit_hf.hub import LOGIN, is_local
from lit_hf.models.damage import damaged_weights
from lit_hf.models.folder import ADAPTER_CONFIG, CARD, FILES, MANIFEST, is_adapter
from lit_hf.run import RunFolder

log = logging.getLogger(__name__)

PUSHED = (*FILES, "*.md", "LICENSE*", "NOTICE*")
"""What may be uploaded: what anybody loads, and what people read."""

BINARY = (".safetensors", ".model")
"""Files without text that could hold a secret."""


def run(argv: Sequence[str]) -> None:
    """Upload a run's best model, or an exported folder, and print its address.

    Raises:
        InputError: With everything that is wrong, before anything is sent; or if the Hub refuses it.
        UploadError: If the upload was cut short; the same command goes on.
    """
    parser = Parser("push", "Upload a run's best model to the Hugging Face Hub; a push that was cut goes on.")
    parser.add_folder("folder of the run, or of an exported model")
    parser.add_argument("--repo", metavar="OWNER/NAME", help="the repository; it is made if it is not there")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--merge", action="store_true", help="merge an adapter into its base model")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to; it is made if it is not there")
    parser.add_argument("--message", help="message of the commit")
    parser.add_safe_config()
    options = parser.parse_args(argv)
    given = Path(parser.folder(options))
    raise_problems(_option_problems(options.repo))
    folder = _exported(given, options.merge, options.safe_config)
    files = _files(folder)
    raise_problems([*_content_problems(folder), *_secret_problems(folder, files)])
    address = upload(
        folder, files, options.repo, private=options.private, revision=options.revision, message=options.message
    )
    size = sum((folder / name).stat().st_size for name in files)
    print(f"Pushed {folder} ({len(files)} files, {size:,} bytes):\n{address}")


def _option_problems(repo: str | None) -> Iterator[Problem]:
    """Find what can be known to be wrong before anything is read or sent."""
    if not repo:
        yield Problem("--repo", "no repository is named.", "Name it: --repo <your name or organization>/<model>.")
    elif not _is_repo(repo):
        yield Problem("--repo", f"{repo!r} is no name of a repository.", "Write <your name or organization>/<model>.")
    if constants.HF_HUB_OFFLINE:
        yield Problem("HF_HUB_OFFLINE", "it keeps us from the Hub.", "Unset it.")
    elif not get_token():
        yield Problem("", "there is no login for the Hub.", LOGIN)


def _is_repo(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def _exported(given: Path, merge: bool, safe: bool) -> Path:
    """Return the folder to push.

    Raises:
        InputError: If there is neither a run nor an export, or an export that would have to be merged.
    """
    if RunFolder(given).exists():
        return current_export(RunFolder(given), merge, safe)
    if not (given / MANIFEST).is_file():
        what = "there is no run, and no model that lit-hf exported."
        raise InputError(Problem(str(given), what, "Give the folder of a run, or what lit-hf export has written."))
    if merge and is_adapter(given):
        raise InputError(Problem("--merge", f"{given} is an adapter alone.", "Give the run's folder to merge it."))
    return given


def _files(folder: Path) -> list[str]:
    """Return what is pushed of a folder, by path in it, and say what is not."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    files = list(filter_repo_objects(names, allow_patterns=list(PUSHED)))
    if others := [name for name in names if name not in files]:
        log.warning("not pushed, as they are no weights, settings, tokenizer or text: %s", ", ".join(others))
    return files


def _content_problems(folder: Path) -> Iterator[Problem]:
    yield from damaged_weights(folder)
    card = folder / CARD
    if not card.is_file():
        yield Problem(str(card), "there is no model card.", "Write one, or export the run again: lit-hf export.")
    else:
        try:
            ModelCard.load(card)
        except (ValueError, yaml.YAMLError) as error:
            what = f"the head of the model card is not valid: {' '.join(str(error).split())}"
            yield Problem(str(card), what, "Mend what stands between the two lines of ---.")
    if is_adapter(folder):
        base = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8")).get("base_model_name_or_path")
        if base is None or is_local(base):
            where = f"{folder / ADAPTER_CONFIG}: base_model_name_or_path"
            what = "the adapter's base model is a folder of this machine, so that nobody else could load it."
            yield Problem(
                where, what, "Push both as one model: --merge. Or push the base first, and name its id there."
            )


def _secret_problems(folder: Path, files: Sequence[str]) -> Iterator[Problem]:
    for name in files:
        path = folder / name
        if path.suffix not in BINARY and _holds_secret(path):
            cure = "Remove it. If it is none, unset the environment variable that has it as its value."
            yield Problem(str(path), "a token, a password or another secret stands there.", cure)


def _holds_secret(path: Path) -> bool:
    """Say whether a secret stands in one text of a file, and not only across several: a vocabulary has all sorts."""
    text = path.read_text("utf-8", errors="replace")
    if not holds_secret(text):
        return False
    try:
        return any(map(holds_secret, _texts(json.loads(text))))
    except ValueError:
        return any(map(holds_secret, text.splitlines()))


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts of a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from _texts(item)
