from datasets import Dataset

from lit_hf.data.batch_settings import BatchSettings

ALONE = (0, 1)
ROWS = Dataset.from_dict({"input_ids": [[1] * length for length in (3, 9, 5, 7, 1)]})


def settings(**given):
    plain = {"size": 2, "eval_size": None, "tokens": None, "packing": False, "group_by_length": True, "multiple": None}
    return BatchSettings(**{**plain, "seed": 0, **given})


def sizes(order):
    return [len(rows) for rows in order]


def test_training_batches_have_so_many_rows_or_so_many_tokens():
    assert sizes(settings().training_order(ROWS, ALONE)) == [2, 2, 1]
    assert settings().training_tokens(ROWS) is None
    order = settings(tokens=10).training_order(ROWS, ALONE)
    assert max(len(rows) * order.lengths[rows].max() for rows in order) <= 10
    assert max(settings(tokens=16, multiple=8).training_order(ROWS, ALONE).lengths) == 16


def test_packed_batches_hold_as_much_as_so_many_of_the_longest_rows():
    packed = settings(packing=True)
    assert packed.training_tokens(ROWS) == 2 * 9
    order = packed.training_order(ROWS, ALONE)
    assert order.arrangement == "packed"
    assert max(order.lengths[rows].sum() for rows in order) <= 18
    assert packed.training_order(ROWS, ALONE, repeats=True).arrangement == "sorted"


def test_evaluation_batches_are_twice_as_large_or_as_asked_for_or_have_the_tokens():
    assert sizes(settings().evaluation_order(ROWS, ALONE)) == [4, 1]
    assert sizes(settings(eval_size=3, tokens=10).evaluation_order(ROWS, ALONE)) == [3, 2]
    assert sizes(settings(tokens=10).evaluation_order(ROWS, ALONE)) == [1, 1, 2, 1]


def test_what_is_computed_of_all_rows_is_in_batches_as_large_as_in_training():
    assert sizes(settings(eval_size=5).computing_order(ROWS)) == [2, 2, 1]
    assert sizes(settings(eval_size=5, tokens=10).computing_order(ROWS)) == [1, 1, 2, 1]


def test_windows_of_a_stream_have_orders_of_their_own():
    rows = Dataset.from_dict({"input_ids": [[1]] * 50})
    first, second = (list(settings().training_order(rows, ALONE, window)) for window in (0, 1))
    assert first != second
    assert list(settings().training_order(rows, ALONE, 1)) == second


def test_rows_that_no_batch_has_room_for_are_told():
    assert list(settings(tokens=9).row_problems(ROWS)) == list(settings().row_problems(ROWS)) == []
    (problem,) = settings(tokens=8).row_problems(ROWS)
    assert problem.where == "data.batch_tokens" and "takes 9 tokens, a batch has 8" in problem.what
