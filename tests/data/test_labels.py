import pytest
from datasets import ClassLabel, Features, List, Value

from lit_hf.data.labels import class_names


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
