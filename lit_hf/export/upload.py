"""An exported folder, uploaded to the Hub: what is there already is not sent again."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi

from lit_hf import __version__
from lit_hf.errors import InputError, LitHFError, Problem
from lit_hf.hub import upload_error
from lit_hf.models.folder import ADAPTER_CONFIG, MODEL_CONFIG

logger = logging.getLogger(__name__)

DECISIVE = ("config.json", ADAPTER_CONFIG, f"{MODEL_CONFIG}/config.json")
"""Files by which libraries tell a whole model from an adapter: left over from another export, they would mislead."""

WEIGHTS = re.compile(r"(model|adapter_model)(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
"""What transformers and PEFT name weights; others in a repository are somebody's own."""


def upload(
    folder: Path,
    files: Sequence[str],
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Commit files of a folder to a repository of the Hub; it is made where it is not there.

    How far an upload got is known by the Hub, not here: it asks for no file that it has. So nothing is written beside
    the files, and an upload that was cut goes on from any machine.

    Args:
        folder: The exported folder.
        files: Which of its files, by their path in it.
        repo: The repository, `owner/name`.
        private: Make a new repository private.
        revision: Branch to commit to; it is made where it is not there. By default `main`.
        message: What the commit says.

    Returns:
        The address of the repository, or of the branch.

    Raises:
        InputError: If the Hub refuses it, or the repository is there already and public, though it should be private.
        UploadError: If it was cut short: the same call goes on.
    """
    api = HfApi(library_name="lit-hf", library_version=__version__)
    with _failures_told(repo):
        address = _make_repository(api, repo, private, revision)
        left_over = _left_over(api, repo, revision, files)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in files],
            delete_patterns=[glob.escape(name) for name in left_over] or None,
            revision=revision,
            commit_message=message or f"Upload a model with lit-hf {__version__}",
        )
    return f"{address}/tree/{revision}" if revision else address


@contextmanager
def _failures_told(repo: str) -> Iterator[None]:
    """Turn what the Hub and the network raise into errors that say what to do."""
    try:
        yield
    except LitHFError:
        raise
    except Exception as error:
        if (told := upload_error(repo, error)) is None:
            raise
        raise told from error


def _make_repository(api: HfApi, repo: str, private: bool, revision: str | None) -> str:
    """Make a repository and its branch where they are not there, and return its address."""
    address = str(api.create_repo(repo, private=private or None, exist_ok=True))
    if private and not api.model_info(repo).private:
        what = f"{repo} is there already, and public: only a new repository can be made private here."
        raise InputError(Problem("--private", what, "Make it private on its page on the Hub, or name another one."))
    if revision and not revision.startswith("refs/"):
        api.create_branch(repo, branch=revision, exist_ok=True)
    return address


def _left_over(api: HfApi, repo: str, revision: str | None, files: Sequence[str]) -> list[str]:
    """Return what an export of another kind, or with other parts, left in the repository."""
    there = api.list_repo_files(repo, revision=revision)
    left_over = sorted({name for name in there if name in DECISIVE or WEIGHTS.fullmatch(name)} - set(files))
    if left_over:
        logger.info("removed from %s, as they are of another export: %s", repo, ", ".join(left_over))
    return left_over
