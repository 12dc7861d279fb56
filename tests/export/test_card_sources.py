from __future__ import annotations

import pytest

from lit_hf.export.card_sources import described_sources, public


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        (
            {"path": "nyu-mll/glue", "name": "mrpc", "validation_share": 0.1},
            [
                "- [nyu-mll/glue](https://huggingface.co/datasets/nyu-mll/glue), configuration `mrpc`",
                "  - validation: its validation split; where it has none, 10% of the training rows, held out",
            ],
        ),
        (
            {"path": "imdb", "train": "train[:10%]", "validation": "test", "limit": {"train": 100}},
            [
                "- [imdb](https://huggingface.co/datasets/imdb)",
                "  - train: `train[:10%]`",
                "  - validation: `test`",
                "  - limit: `{'train': 100}` rows of a split",
            ],
        ),
        ({"path": "/data/of/somebody/reviews", "validation_share": 0}, ["- the folder `reviews`"]),
        (
            {"generator": "my_package.rows", "validation_share": 0.125},
            ["- the generator `my_package.rows`", "  - validation: 12.5% of the training rows, held out"],
        ),
        (
            {"path": "allenai/c4", "train": "train", "validation_share": 0.1, "streaming": True},
            ["- [allenai/c4](https://huggingface.co/datasets/allenai/c4)", "  - train: `train`"],
        ),
        ({"train": "a.jsonl"}, ["- files", "  - train: `a.jsonl`"]),
    ],
)
def test_a_source_is_named_as_the_config_names_it(source, lines):
    (described,) = described_sources(source)
    assert list(described.lines()) == lines


def test_paths_through_this_machine_are_cut_to_their_last_name():
    values = {"a": ["/home/x/y.json", "~/z", "file:///home/x/w", "data/v.json", "../u"], "b": {"c": "/"}, "d": 1}
    assert public(values) == {"a": ["y.json", "z", "w", "data/v.json", "../u"], "b": {"c": "/"}, "d": 1}
