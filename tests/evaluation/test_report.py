import io

from rich.console import Console

from lit_hf.evaluation.report import confusion_report, confusion_table, majority

CONFUSION = [[8, 2], [1, 4]]


def test_the_majority_class_is_the_one_with_most_true_rows():
    assert majority(CONFUSION, ["cat", "dog"]) == ("cat", 10 / 15)


def test_the_table_shows_counts_and_each_class_s_recall():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(confusion_table(CONFUSION, ["cat", "dog"]))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["1", "cat", "8", "2", "0.800"] in lines
    assert ["2", "dog", "1", "4", "0.800"] in lines


def test_the_report_leaves_a_table_out_that_is_too_large_to_read():
    many = [[1] * 13 for _ in range(13)]
    assert len(list(confusion_report(CONFUSION, ["cat", "dog"]))) == 2
    assert list(confusion_report(many, [str(number) for number in range(13)])) == [
        "majority class  0.0769  (always '0')"
    ]
