"""The verb inspect: the first rows as the model will see them, without loading the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lit_hf.cli.options import Parser, positive
from lit_hf.errors import InputError, Problem

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from lit_hf.cli.trainer import TrainerCLI
    from lit_hf.data.sequences import Piece

SPLITS = ("train", "validation", "test")

STYLES = {"trained": "bold green", "seen": "", "padding": "dim magenta"}

LEGEND = {"trained": "trained", "seen": "seen, not trained", "padding": "padding"}

SHOWN_VALUES = 60
"""Characters of a column that is no text."""


def run(argv: Sequence[str]) -> None:
    """Show the first rows of a split."""
    parser = Parser("inspect", "Show the first rows of a split as the model will see them.", add_help=False)
    parser.add_argument("-n", type=positive, default=3)
    parser.add_argument("--split", choices=SPLITS, default="train")
    options, rest = parser.parse_known_args(argv)

    from rich.console import Console

    from lit_hf.cli.arguments import with_run_config
    from lit_hf.cli.trainer import TrainerCLI

    cli = TrainerCLI(with_run_config(rest), "inspect")
    _prepare(cli, options.split)
    console = Console(highlight=False, soft_wrap=True)
    _Page(console, cli, options.split).show(options.n)


def _prepare(cli: TrainerCLI, split: str) -> None:
    """Load, check and encode the rows, as fit does.

    Raises:
        InputError: If something is wrong with the config, the files or the rows, or if there is no such split.
    """
    cli.datamodule.longest_input = cli.model.longest_input
    cli.datamodule.prepare("test" if split == "test" else "fit")
    if split not in cli.datamodule.encoded:
        there = ", ".join(cli.datamodule.encoded)
        raise InputError(Problem("--split", f"there is no {split} split.", f"There is: {there}."))


class _Page:
    """What is shown of a split."""

    def __init__(self, console: Console, cli: TrainerCLI, split: str) -> None:
        self.console = console
        self.task, self.data, self.split = cli.task, cli.datamodule, split
        self.rows, self.encoded = cli.datamodule.splits[split], cli.datamodule.encoded[split]
        self.coloured = console.is_terminal and not console.no_color

    def show(self, count: int) -> None:
        from lit_hf.data.sequences import read_batch

        features = [self.encoded[index] for index in range(min(count, len(self.encoded)))]
        collate = self.task.collator(training=self.split == "train", pad_to_multiple_of=self.data.batches.multiple)
        self._show_legend()
        for index, row in enumerate(read_batch(collate(features), features, self.task)):
            self._show_head(index, features[index])
            for name, pieces in row.sequences.items():
                self._show_sequence(name, pieces)
            for name, value in row.values.items():
                self.console.print(f"[dim]{name}:[/dim] ", end="")
                self.console.print(_short(value), markup=False)
        self._show_summary()

    def _show_legend(self) -> None:
        from rich.text import Text

        legend = Text("  ").join(self._marked(LEGEND[state], state) for state in STYLES)
        self.console.print(legend)

    def _show_head(self, index: int, features: dict[str, Any]) -> None:
        row = features.get("row", index)
        known = "row" in features or len(self.encoded) == len(self.rows.rows)
        place = self.rows.place(row) if known else f"input {index + 1}"
        self.console.print()
        if self.coloured:
            self.console.rule(f"[bold]{self.split} {index + 1}[/bold] [dim]{place}[/dim]", align="left", style="dim")
        else:
            self.console.print(f"--- {self.split} {index + 1}: {place}", markup=False)
        if cut := self._cut(index, row, known):
            self.console.print(f"[yellow]{cut}[/yellow]")

    def _cut(self, index: int, row: int, known: bool) -> str:
        """Say where truncation has cut the row, if it has."""
        from lit_hf.data.encoding import count_cut

        one = self.rows.rows.select([row]) if known else None
        if one is None or "row" in self.encoded.column_names:
            return ""
        is_cut = count_cut(one, self.encoded.select([index]), self.task)
        return f"cut after {self.task.tokenizer.model_max_length} tokens" if is_cut else ""

    def _show_sequence(self, name: str, pieces: Sequence[Piece]) -> None:
        from rich.text import Text

        counts = {state: sum(piece.tokens for piece in pieces if piece.state == state) for state in STYLES}
        total = counts["trained"] + counts["seen"]
        parts = [f"{total:,} tokens"]
        parts += [f"{counts['trained']:,} trained ({counts['trained'] / total:.0%})"] if counts["trained"] else []
        parts += [f"{counts['padding']:,} padding"] if counts["padding"] else []
        self.console.print(f"[dim]{name}: {', '.join(parts)}[/dim]")
        self.console.print(Text("").join(self._text(pieces)))

    def _text(self, pieces: Iterable[Piece]) -> Iterator[Text]:
        for piece in pieces:
            if piece.state == "padding":
                yield self._marked(f"{piece.text} x {piece.tokens}", piece.state)
            elif piece.tag:
                yield from self._tagged(piece)
            else:
                text = _visible(piece.text)
                yield self._marked(text.replace("\n", "⏎\n") if piece.state == "trained" else text, piece.state)

    def _tagged(self, piece: Piece) -> Iterator[Text]:
        """Show a token and what it is to be labelled with, without the blanks before it."""
        from rich.text import Text

        text, tag = _visible(piece.text), _visible(piece.tag)
        word = text.lstrip()
        yield Text(text[: len(text) - len(word)])
        if not self.coloured:
            yield self._marked(f"{word}/{tag}", piece.state)
            return
        yield self._marked(word, piece.state)
        yield Text(f"/{tag}", style="cyan")

    def _marked(self, text: str, state: str) -> Text:
        from rich.text import Text

        marks = {"trained": "[[{}]]", "padding": "<{}>"} if not self.coloured else {}
        return Text(marks.get(state, "{}").format(text), style=STYLES[state])

    def _show_summary(self) -> None:
        from lit_hf.data.sequences import count_trained

        self.console.print()
        self.console.print(f"{self.split}: {len(self.encoded):,} inputs; {self.data.lengths[self.split]}", markup=False)
        if counted := count_trained(self.encoded, self.task):
            trained, tokens = counted
            self.console.print(f"{self.split}: {trained:,} of {tokens:,} tokens are trained ({trained / tokens:.1%})")


def _visible(text: str) -> str:
    """Return text in which nothing steers the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)


def _short(value: Any) -> str:
    text = _visible(str(value))
    return text if len(text) <= SHOWN_VALUES else f"{text[:SHOWN_VALUES]}..."
