"""The verbs validate and test: evaluate a run's best checkpoint on a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table

from lit_hf.cli.arguments import with_run_config
from lit_hf.cli.runs import bind_task, build_model, load_weights, read_best_or_last
from lit_hf.cli.trainer import TrainerCLI


def run(verb: Literal["validate", "test"], arguments: Sequence[str]) -> None:
    """Evaluate on the split that the verb names, and print the metrics.

    Args:
        verb: The verb.
        arguments: The options after it.

    Raises:
        InputError: With everything that is wrong, before weights are loaded.
    """
    cli = TrainerCLI(with_run_config(arguments), verb)
    checkpoint = read_best_or_last(cli.run, "best")
    bind_task(cli, checkpoint)
    cli.prepare(verb)
    trainer = cli.make_trainer(verb)
    cli.add_reference()
    build_model(cli.model)
    load_weights(cli.model, checkpoint)
    stage = trainer.validate if verb == "validate" else trainer.test
    results = stage(cli.model, datamodule=cli.datamodule, verbose=False)
    if trainer.is_global_zero:
        _print(cli, results[0])


def _print(cli: TrainerCLI, metrics: Mapping[str, float]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    table = Table("metric", "value", title=f"{cli.run.path}", title_justify="left")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
    results = {name.partition("/")[2]: value for name, value in cli.model.results.items()}
    for part in cli.task.report(results):
        console.print(part)
