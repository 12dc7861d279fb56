import pytest

from lit_hf.cli.help import class_help, requested_help, verb_help
from lit_hf.cli.schema import read_options
from lit_hf.errors import InputError


@pytest.fixture
def page(parser, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    return verb_help(parser, "fit").splitlines()


def entry(page, flag):
    """Return an option's text, without its line breaks."""
    start = next(number for number, line in enumerate(page) if line.split()[:1] == [flag])
    following = page[start + 1 :]
    end = next(number for number, line in enumerate(following) if not line.startswith(" " * 30))
    return " ".join(" ".join([page[start], *following[:end]]).split())


def test_it_begins_with_usage_and_examples_and_its_groups_have_an_order(page):
    assert page[0] == "usage: lit-hf fit -c <file> [-c <file> ...] [--key value ...]"
    assert "  lit-hf fit -c configs/quickstart.yaml" in page
    headings = [line.partition(":")[0] for line in page if line[:1].strip() and ":" in line]
    assert [name for name in headings if name in ("task", "model", "data", "run", "trainer")] == [
        "task",
        "model",
        "data",
        "run",
        "trainer",
    ]


def test_an_option_has_its_purpose_its_type_and_its_default(page):
    assert entry(page, "--data.batch_size").endswith("(int, default 32)")
    assert entry(page, "--model.dtype").endswith("(float32|bfloat16|float16|auto, default float32)")
    assert entry(page, "--model.optimizer").endswith("(class, default torch.optim.AdamW, lr: 5e-05)")
    assert entry(page, "--trainer.max_epochs") == (
        "--trainer.max_epochs Stop training once this number of epochs is reached (int)"
    )
    assert entry(page, "--task.label_smoothing").endswith("(number, default 0.0)")


def test_every_option_is_there_and_none_that_cannot_be_set(page, parser):
    shown = {line.split()[0] for line in page if line.strip().startswith("--")}
    expected = {f"--{option.key}" for option in read_options(parser).leaves() if option.key != "task"}
    assert expected - shown == set()
    assert shown & {"--data.task", "--data.checkpoint", "--model.task", "--data.seed"} == set()


def test_it_fits_the_terminal_and_has_no_markup_and_no_union_types(page):
    assert max(map(len, page[2:])) <= 100
    assert [line for line in page if "Union[" in line or "``" in line or ":class:" in line or "NoneType" in line] == []


def test_the_classes_that_an_option_takes_are_listed(parser):
    shown = class_help(parser, "model.adapter", "")
    assert "\n  LoraConfig " in shown and "\n  IA3Config " in shown


def test_one_class_s_options_are_listed(parser):
    shown = class_help(parser, "model.adapter", "peft.LoraConfig")
    assert "--model.adapter.r " in shown and "(int, default 8)" in shown
    assert "--model.optimizer.lr " in class_help(parser, "model.optimizer", "torch.optim.AdamW")
    assert "params" not in class_help(parser, "model.optimizer", "torch.optim.AdamW").split()


def test_help_is_shown_only_where_it_is_asked_for(parser):
    assert requested_help(parser, ["-c", "a.yaml", "--name=help"]) == ""
    assert requested_help(parser, ["-c", "a.yaml", "--help"]).startswith("usage: lit-hf ")
    assert "IA3Config" in requested_help(parser, ["--model.adapter.help"])
    assert "--model.adapter.r " in requested_help(parser, ["--model.adapter.help=peft.LoraConfig", "--name", "x"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("--model.adaptr.help", "model.adaptr: takes no class.\n    Did you mean 'model.adapter'?"),
        ("--model.adapter.help=peft.LoraCfg", "model.adapter: peft has no 'LoraCfg'."),
        ("--data.batch_size.help", "data.batch_size: takes no class."),
    ],
)
def test_help_for_what_is_not_there_is_an_error(parser, asked, said):
    with pytest.raises(InputError) as caught:
        requested_help(parser, [asked])
    assert str(caught.value).startswith(said)
