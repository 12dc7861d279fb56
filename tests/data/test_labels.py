import pytest
from datasets import ClassLabel, Features, List, Value

from lit_hf.data.labels import check_order, class_names
from lit_hf.errors import InputError, collect


@pytest.mark.parametrize(
    ("feature", "names"),
    [
        (ClassLabel(names=["no", "yes"]), ["no", "yes"]),
        (List(ClassLabel(names=["O", "B-PER"])), ["O", "B-PER"]),
        (List(Value("string")), None),
        (Value("int64"), None),
    ],
)
def test_the_names_of_a_class_label_are_found_alone_and_in_lists(feature, names):
    assert class_names(Features({"label": feature}), "label") == names


def test_a_column_that_is_not_there_has_no_names():
    assert class_names(Features({"text": Value("string")}), "label") is None


@pytest.mark.parametrize("declared", [["yes", "no"], ["perhaps", "no", "yes"]])
def test_names_that_are_declared_in_another_order_are_refused(declared):
    with pytest.raises(InputError) as caught:
        check_order(declared, ["no", "yes"], "label")
    (problem,) = caught.value.problems
    assert problem.where == "task.labels"
    shown = ", ".join(declared)
    assert problem.what == f"the order is {shown}, but the ids of column 'label' stand for no, yes."


@pytest.mark.parametrize("declared", [["no", "yes"], ["no", "yes", "perhaps"], ["bad", "good"]])
def test_the_same_order_and_new_names_are_sound(declared):
    assert collect(lambda: check_order(declared, ["no", "yes"], "label")) == []
