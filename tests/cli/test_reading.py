import pytest

from lit_hf.cli.reading import Value, read_file, read_option, walk_scalars
from lit_hf.errors import InputError


@pytest.fixture
def written(folder):
    def write(text, name="a.yaml"):
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return write


def test_values_know_their_lines(written):
    value, repeated = read_file(written("a: 1\nb:\n  c: [x,\n    y]\n  d: 1e-4\n"))
    assert value.plain() == {"a": 1, "b": {"c": ["x", "y"], "d": 0.0001}}
    assert repeated == []
    assert {key: scalar.place for key, scalar in walk_scalars("", value)} == {
        "a": "a.yaml:1",
        "b.c[0]": "a.yaml:3",
        "b.c[1]": "a.yaml:4",
        "b.d": "a.yaml:5",
    }


def test_scalars_are_what_jsonargparse_takes_them_for(written):
    text = "a: '1'\nb: 1\nc: 2024-01-02\nd: ~\ne: 00:12:00:00\nf: yes\ng: |\n  two\n  lines\nh:\ni: 'null'\n"
    assert read_file(written(text))[0].plain() == {
        "a": "1",
        "b": 1,
        "c": "2024-01-02",
        "d": None,
        "e": "00:12:00:00",
        "f": True,
        "g": "two\nlines\n",
        "h": None,
        "i": "null",
    }


def test_every_key_given_twice_is_told_with_both_lines(written):
    _, repeated = read_file(written("a: 1\nb: {c: 1, c: 2}\na: 3\n"))
    assert [problem[:2] for problem in repeated] == [
        ("a.yaml:2", "`c` is given twice in the same block, first at a.yaml:2."),
        ("a.yaml:3", "`a` is given twice in the same block, first at a.yaml:1."),
    ]


def test_merged_blocks_are_not_given_twice(written):
    value, repeated = read_file(written("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n"))
    assert value.plain() == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}
    assert repeated == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1,\nb: 2\n", "a.yaml:3:1: this is not YAML: while parsing a flow sequence from line 1 on; expected ','"),
        ("a:\n\tb: 1\n", "a.yaml:2:1: this is not YAML: while scanning for the next token; found character '\\t'"),
        ("a: b: c\n", "a.yaml:1:5: this is not YAML: mapping values are not allowed here."),
        ("a: 1\n---\nb: 1\n", "a.yaml:2:1: this is not YAML: expected a single document"),
        ("a: *b\n", "a.yaml:1:4: this is not YAML: found undefined alias 'b'."),
        ("a: !!python/object/apply:os.system [ls]\n", "a.yaml:1: the tag !!python/object/apply:os.system is refused"),
        ("a: !mine 3\n", "a.yaml:1: the tag !mine is refused"),
        ("- a\n", "a.yaml: expected keys and values, found a list."),
        ("just text\n", "a.yaml: expected keys and values, found a single value."),
        ("# nothing\n", "a.yaml: expected keys and values, found nothing."),
        (b"a: \xff\n", "a.yaml: is not UTF-8 text (byte 3)."),
        ("a: \x07\n", "a.yaml: this is not YAML: unacceptable character"),
    ],
)
def test_a_file_that_is_no_config_is_told_with_the_place(written, text, said):
    with pytest.raises(InputError) as caught:
        read_file(written(text))
    assert str(caught.value).startswith(said)


def test_a_file_that_is_not_there_has_its_nearest_named(written):
    written("a: 1\n", "quickstart.yaml")
    for path, cure in {
        "quikstart.yaml": "Did you mean quickstart.yaml?",
        "zzz": "Config files in .: quickstart.yaml.",
        "nowhere/x.yaml": "There is no folder nowhere either.",
    }.items():
        with pytest.raises(InputError) as caught:
            read_file(path)
        assert caught.value.problems[0][1:] == (f"there is no file {path}.", cure)


def test_folders_and_other_machines_are_refused(written, folder):
    written("a: 1\n")
    with pytest.raises(InputError, match=r"is a folder, not a file\.\n    Config files in it: a\.yaml\."):
        read_file(folder)
    for path in ("https://x.org/a.yaml", "s3://bucket/a.yaml"):
        with pytest.raises(InputError, match="is not read: a config can name code to run"):
            read_file(path)


@pytest.mark.parametrize(
    ("text", "content"), [("3", 3), ("1e-3", 0.001), ("abc", "abc"), ("", None), ("[", "["), ("a: b", {"a": "b"})]
)
def test_an_option_s_value_is_read_like_a_file_s(text, content):
    value = read_option(text)
    assert (value.plain(), value.text, value.place) == (content, text, "")


def test_a_block_on_the_command_line_is_read_as_one():
    assert read_option('{"a": [1, x]}').content["a"].content[1] == Value("x")


def test_values_are_shown_as_in_yaml():
    shown = [read_option(text).shown() for text in ("null", "true", "abc", "{a: [1, b]}", "x" * 90)]
    assert shown == ["null", "true", "'abc'", "{a: [1, b]}", f"'{'x' * 56}..."]
