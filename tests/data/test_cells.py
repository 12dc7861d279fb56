from datasets import Dataset

from lit_hf.data.cells import AT_ONCE, Cells

COUNT = 2 * AT_ONCE + 1


def test_cells_are_the_column_s_values_in_the_order_of_the_rows():
    rows = Dataset.from_dict({"text": [str(row) for row in range(COUNT)], "other": [0] * COUNT})
    rows = rows.select(range(COUNT - 1, -1, -1))  # rows that were chosen or shuffled lie elsewhere in the file
    cells = Cells(rows, "text")
    assert len(cells) == COUNT
    assert list(cells) == list(cells) == [str(row) for row in range(COUNT - 1, -1, -1)]
    assert cells[0] == str(COUNT - 1)
    assert cells[:2] == [str(COUNT - 1), str(COUNT - 2)]


def test_values_are_what_the_rows_hold():
    spans = [{"text": ["a"], "start": [1]}, None, {"text": [], "start": []}]
    assert list(Cells(Dataset.from_dict({"spans": spans}), "spans")) == spans


def test_no_rows_have_no_cells():
    cells = Cells(Dataset.from_dict({"text": []}), "text")
    assert not cells
    assert list(cells) == []
