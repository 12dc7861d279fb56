"""The rows a model was trained on, as its card names them: never by where they lie on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lit_hf.hub import is_local


class Described(NamedTuple):
    """A source of rows.

    Attributes:
        title: What it is called; where files are named, their names.
        kind: What it is, if it is not of the Hub.
        id: Its id, if it is a dataset of the Hub.
        config: The dataset's configuration.
        revision: The dataset's revision.
        splits: What the rows of each split are.
    """

    title: str
    kind: str
    id: str | None
    config: str | None
    revision: str | None
    splits: Mapping[str, str]

    def lines(self) -> Iterator[str]:
        """Yield the source as a list item of Markdown, its splits below."""
        link = f"[{self.id}](https://huggingface.co/datasets/{self.id})" if self.id else self.kind
        details = {"configuration": self.config, "revision": self.revision}
        yield f"- {', '.join([link, *(f'{name} `{value}`' for name, value in details.items() if value)])}"
        for split, rows in self.splits.items():
            yield f"  - {split}: {rows}"


def described_sources(sources: Any) -> list[Described]:
    """Return what a card says of the config's `data.source`, one or several."""
    return [_described(source) for source in (sources if isinstance(sources, list) else [sources])]


def _described(source: Mapping[str, Any]) -> Described:
    path, generator = source.get("path"), source.get("generator")
    title = _listed(path or generator or source.get("train"))
    kind = f"the folder `{title}`" if path else f"the generator `{title}`" if generator else "files"
    on_hub = path if path and not is_local(path) else None
    return Described(title, kind, on_hub, source.get("name"), source.get("revision"), _splits(source))


def _splits(source: Mapping[str, Any]) -> dict[str, str]:
    splits = {name: f"`{_listed(source[name])}`" for name in ("train", "validation") if source.get(name)}
    if "validation" not in splits and source.get("validation_share") and not source.get("streaming"):
        share = f"{100 * source['validation_share']:g}% of the training rows, held out"
        splits["validation"] = f"its validation split; where it has none, {share}" if source.get("path") else share
    if source.get("limit"):
        splits["limit"] = f"`{source['limit']}` rows of a split"
    return splits


def _listed(value: Any) -> str:
    return ", ".join(map(public, value if isinstance(value, list) else [value]))


def public(value: Any) -> Any:
    """Return settings in which paths that lead through this machine are cut to their last name."""
    if isinstance(value, Mapping):
        return {key: public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    if isinstance(value, str) and (value.startswith(("~", "file:")) or Path(value).is_absolute()):
        return Path(value).name or value
    return value
