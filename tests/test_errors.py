import pytest

from lit_hf.errors import InputError, LitHFError, Preempted, Problem, TrainingError, collect, nearest, raise_problems


def test_one_problem_is_told_plainly_and_several_as_a_numbered_list():
    one = Problem("data.batch_size", "0 is too small.", "Give 1 or more.")
    assert str(InputError(one)) == "data.batch_size: 0 is too small.\n    Give 1 or more."
    both = str(InputError(one, Problem("", "the disk is full.")))
    assert both == "2 problems:\n1. data.batch_size: 0 is too small.\n    Give 1 or more.\n2. the disk is full."


def test_no_problems_raise_nothing_and_problems_raise_together():
    raise_problems([])
    with pytest.raises(InputError) as caught:
        raise_problems(Problem(key, "wrong") for key in "ab")
    assert [problem.where for problem in caught.value.problems] == ["a", "b"]


def test_exit_codes_are_the_documented_ones():
    assert [error.exit_code for error in (LitHFError, InputError, TrainingError, Preempted)] == [1, 2, 3, 75]


@pytest.mark.parametrize(
    ("name", "valid", "cure"),
    [
        ("tokn", ["label", "token"], "Did you mean 'token'? There is: label, token."),
        ("xyz", ["label"], "There is: label."),
        ("x", [], "There is none."),
    ],
)
def test_nearest_names_the_likely_one_first(name, valid, cure):
    assert nearest(name, valid) == cure


def test_the_problems_of_all_checks_are_collected_once_each():
    one, other = Problem("a", "wrong"), Problem("b", "wrong")

    def raising():
        raise InputError(one, other)

    assert collect(lambda: [one], raising, lambda: None) == [one, other]
