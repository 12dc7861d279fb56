"""`lit-hf export`: a run's model as a plain Hugging Face folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from lit_hf.cli.options import Parser
from lit_hf.errors import InputError, Problem
from lit_hf.models.folder import is_adapter
from lit_hf.run import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    if run.checkpoint(checkpoint) is None:
        cure = "Export the newest one: --checkpoint last." if run.checkpoint("last") else "Train it first: lit-hf fit."
        raise InputError(Problem(str(run.path), f"the run has no valid {checkpoint} checkpoint.", cure))
    from lit_hf.cli.runs import load_run
    from lit_hf.export.package import export

    model, task, record = load_run(run, checkpoint, safe)
    folder = output or run.export
    export(
        cast("PreTrainedModel", model),
        task,
        record,
        folder,
        merge=bool(config.get("merge")) if merge is None else merge,
    )
    return folder


def next_commands(run: RunFolder, folder: Path) -> str:
    """Return what to type next: a prediction, and for an adapter how to get what transformers' pipeline loads."""
    lines = [f'  lit-hf predict {folder} --text "..."']
    if is_adapter(folder):
        lines.append(f"  lit-hf export {run.path} --merge  # transformers' pipeline loads no adapter by itself")
    return "\n".join(lines)
