"""`lit-hf export`: a run's model as a plain Hugging Face folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from lit_hf.checkpoints import best_name, found
from lit_hf.cli.options import Parser
from lit_hf.errors import InputError, Problem
from lit_hf.models.folder import CARD, MANIFEST, is_adapter
from lit_hf.run import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def run(argv: Sequence[str]) -> None:
    """Export a run as the options say, and print where it is and what to type next."""
    parser = Parser("export", "Write a run's model as a plain Hugging Face folder, which loads without lit-hf.")
    parser.add_folder("folder of the run")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which one (default: best)")
    parser.add_argument("--output", type=Path, help="where to (default: export/ in the run's folder)")
    parser.add_argument("--merge", action="store_true", default=None, help="merge an adapter into its base model")
    parser.add_safe_config()
    options = parser.parse_args(argv)
    run_folder = RunFolder(parser.folder(options))
    folder = export_run(run_folder, options.checkpoint, options.output, options.merge, options.safe_config)
    print(f"Exported to {folder}. Next:\n{next_commands(run_folder, folder)}")


def export_run(
    run: RunFolder,
    checkpoint: Literal["best", "last"] = "best",
    output: Path | None = None,
    merge: bool | None = None,
    safe: bool = False,
) -> Path:
    """Export a run's checkpoint.

    Args:
        run: The run.
        checkpoint: `best` or `last`.
        output: Where to; by default `export/` in the run's folder.
        merge: Merge the adapter; by default what the run's config says.
        safe: Take the run's config as data, as `--safe-config` does.

    Returns:
        Where it is.

    Raises:
        InputError: If there is no run, or it has no such checkpoint.
    """
    config = run.read_config()
    path = run.checkpoint(checkpoint)
    if path is None:
        cure = "Export the newest one: --checkpoint last." if run.checkpoint("last") else "Train it first: lit-hf fit."
        raise InputError(Problem(str(run.path), f"the run has no valid {checkpoint} checkpoint.", cure))
    from lit_hf.cli.runs import load_run
    from lit_hf.export.package import export

    model, task, record, origin = load_run(run, path, safe)
    folder = output or run.export
    export(
        cast("PreTrainedModel", model),
        task,
        record,
        folder,
        merge=bool(config.get("merge")) if merge is None else merge,
        origin=origin,
    )
    return folder


def current_export(run: RunFolder, merge: bool = False, safe: bool = False) -> Path:
    """Return the export of a run's best checkpoint; it is made where it is missing, of another one, or not merged.

    An export whose run has no checkpoints any more is taken as it is.

    Args:
        run: The run.
        merge: Have an adapter merged into its base model; else what is there is taken.
        safe: Take the run's config as data, as `--safe-config` does.

    Raises:
        InputError: If it cannot be made.
    """
    run.read_config()  # told where no run is
    if reason := _outdated(run, merge):
        log.info("the run %s %s; making it", run.path, reason)
        export_run(run, merge=merge or None, safe=safe)
    return run.export


def _outdated(run: RunFolder, merge: bool) -> str:
    """Say why a run's export is not what is wanted; empty if it is. Of checkpoints, manifests alone are read."""
    if not (run.export / MANIFEST).is_file():
        return "has no export yet"
    if not (run.export / CARD).is_file():
        return "has an export without a model card"
    if merge and is_adapter(run.export):
        return "has an export of the adapter alone"
    if not found(run.checkpoints):
        return ""
    best = best_name(run.checkpoints)
    try:
        exported = json.loads((run.export / MANIFEST).read_text("utf-8")).get("checkpoint")
    except (ValueError, AttributeError):
        exported = None
    return "" if exported == best else f"has no export of its best checkpoint, {best or 'which no manifest names'}"


def next_commands(run: RunFolder, folder: Path) -> str:
    """Return what to type next: a prediction, for an adapter how to get what transformers' pipeline loads, a push."""
    lines = [f'  lit-hf predict {folder} --text "..."']
    if is_adapter(folder):
        lines.append(f"  lit-hf export {run.path} --merge  # transformers' pipeline loads no adapter by itself")
    lines.append(f"  lit-hf push {folder} --repo <your name or organization>/<model>")
    return "\n".join(lines)
