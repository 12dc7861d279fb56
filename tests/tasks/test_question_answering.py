import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn import functional
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, CanineTokenizer

from lit_hf.data.batching import count_sizes
from lit_hf.data.encoding import encode
from lit_hf.data.tokenization import SMALLEST_VOCABULARY, train_tokenizer
from lit_hf.errors import InputError
from lit_hf.models.adapters import add_adapter
from lit_hf.tasks import QuestionAnswering

CONTEXT = "the film was good and the plot was dull"
SETTINGS = {"doc_stride": 2, "max_question_length": 2}


def answer(text, start):
    return {"text": [text], "answer_start": [start]}


def rows_of(*answers, question="the plot", context=CONTEXT):
    return {"question": [question] * len(answers), "context": [context] * len(answers), "answers": list(answers)}


@pytest.fixture
def tokenizer(tiny_text_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_text_model)
    tokenizer.model_max_length = 10  # 3 special tokens, 2 of the question, 5 of the context
    return tokenizer


@pytest.fixture
def model(tiny_text_model):
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_pretrained(tiny_text_model).eval()
    model.qa_outputs.weight.data.normal_(0, 3)
    return model


def bound(tokenizer, **settings):
    task = QuestionAnswering(**{**SETTINGS, **settings})
    task.bind(tokenizer)
    return task


def inputs_of(encoded):
    return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]


def batch_of(task, rows, training=False):
    return task.collator(training=training)(inputs_of(task.encode(rows)))


def plain(batch):
    return {name: value for name, value in batch.items() if name != "windows"}


def test_a_long_context_becomes_windows_that_overlap(tokenizer):
    encoded = bound(tokenizer).encode(rows_of(answer("good", 13), answer("plot was", 26), answer("and the", 18)))
    assert [tokenizer.decode(ids) for ids in encoded["input_ids"][3:6]] == [
        "[CLS] the plot [SEP] the film was good and [SEP]",
        "[CLS] the plot [SEP] good and the plot was [SEP]",
        "[CLS] the plot [SEP] plot was dull [SEP]",
    ]
    assert encoded["row"] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    # a window without the whole answer points at [CLS]
    assert encoded["start_positions"] == [7, 4, 0, 0, 7, 4, 0, 5, 0]
    assert encoded["end_positions"] == [7, 4, 0, 0, 8, 5, 0, 6, 0]
    assert encoded["first"] == [4] * 9
    assert encoded["offsets"][4] == [13, 17, 18, 21, 22, 25, 26, 30, 31, 34]
    assert encoded["text"][4] == "good and the plot was"


@pytest.mark.parametrize(
    ("text", "start", "tokens"),
    [
        ("ilme", 5, ["film", "##e"]),  # from inside of a token: whole tokens
        ("was good", 13, ["was", "good"]),
        ("was good ", 13, ["was", "good"]),
        (" was", 12, ["was"]),
        ("the", 0, ["the"]),
        ("ul", 27, ["dull"]),
    ],
)
def test_targets_are_the_tokens_that_cover_the_answer(tokenizer, text, start, tokens):
    context = "the filmed,? was good and dull"
    assert context[start : start + len(text)] == text
    tokenizer.model_max_length = 64
    encoded = bound(tokenizer).encode(rows_of(answer(text, start), context=context))
    (ids,), (first,), (last,) = (encoded[name] for name in ("input_ids", "start_positions", "end_positions"))
    assert tokenizer.convert_ids_to_tokens(ids[first : last + 1]) == tokens


def test_an_answer_of_several_tokens_a_character_is_covered_and_padding_goes_to_the_right():
    context = "she wrote 😀 then"
    tokenizer = train_tokenizer(iter(["she wrote then"] * 3), SMALLEST_VOCABULARY)
    tokenizer.padding_side = "left"
    task = QuestionAnswering()
    task.bind(tokenizer)
    rows = rows_of(answer("😀", 10), answer("then", 12), question="what", context=context)
    rows["question"][0] = "what did she write"
    batch = batch_of(task, rows)
    first, last = batch["start_positions"].tolist(), batch["end_positions"].tolist()
    assert tokenizer.decode(batch["input_ids"][0, first[0] : last[0] + 1]) == "😀"
    assert tokenizer.decode(batch["input_ids"][1, first[1] : last[1] + 1]) == "then"


def test_a_question_without_answer_points_at_the_first_special_token(tokenizer):
    encoded = bound(tokenizer, unanswerable=True).encode(rows_of({"text": [], "answer_start": []}))
    assert encoded["start_positions"] == encoded["end_positions"] == [0, 0, 0]


def test_a_long_question_is_cut_and_blanks_before_it_are_dropped(tokenizer):
    encoded = bound(tokenizer).encode(rows_of(answer("film", 4), question="  the plot was not good"))
    assert tokenizer.decode(encoded["input_ids"][2]) == "[CLS] the plot [SEP] plot was dull [SEP]"


def test_a_thousand_questions_without_answer_may_come_before_one_with(tokenizer):
    task = bound(tokenizer, unanswerable=True)
    none = {"text": [], "answer_start": []}
    rows = Dataset.from_dict(rows_of(*[none] * 1000, answer("good", 13), context="the film was good"))
    encoded, _ = encode(rows, task, "train")
    windows = task.collator()([encoded[999], encoded[1000]])["windows"]
    assert [window.answers for window in windows] == [[], ["good"]]


def test_prediction_encodes_without_answers(tokenizer):
    rows = rows_of(answer("good", 13))
    del rows["answers"]
    encoded = bound(tokenizer).encode(rows)
    assert not {"answers", "start_positions", "end_positions"} & set(encoded)
    assert len(encoded["input_ids"]) == 3


def test_loss_and_gradients_are_the_plain_model_s(tokenizer, model):
    task = bound(tokenizer)
    batch = batch_of(task, rows_of(answer("good", 13), answer("plot was", 26)), training=True)
    assert all(isinstance(value, torch.Tensor) for value in batch.values())
    assert count_sizes(batch, [{}] * 6).targets == 6
    task.forward(model, batch).loss.backward()
    gradient = model.qa_outputs.weight.grad.clone()
    model.zero_grad()
    outputs = model(**{name: value for name, value in batch.items() if not name.endswith("positions")})
    losses = [
        functional.cross_entropy(outputs[f"{side}_logits"], batch[f"{side}_positions"]) for side in ("start", "end")
    ]
    expected = sum(losses) / 2
    expected.backward()
    assert task.forward(model, batch).loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert torch.allclose(gradient, model.qa_outputs.weight.grad, atol=1e-6)


def test_loss_is_the_same_under_an_adapter(tokenizer, model):
    task = bound(tokenizer)
    batch = batch_of(task, rows_of(answer("good", 13)))
    expected = task.forward(model, batch).loss.item()
    adapted = add_adapter(model, LoraConfig(target_modules=["query"]), task.peft_task_type, ["qa_outputs.weight"])
    assert task.forward(adapted.eval(), batch).loss.item() == pytest.approx(expected, abs=1e-6)


def plain_answer(model, tokenizer, rows, row, longest):
    """Return the best span of a row by a loop over every window, first and last token, and the lowest null score."""
    encoding = tokenizer(
        rows["question"][row],
        rows["context"][row],
        truncation="only_second",
        stride=SETTINGS["doc_stride"],
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    best, nulls = (float("-inf"), 0, 0), []
    for number, ids in enumerate(encoding["input_ids"]):
        with torch.inference_mode():
            outputs = model(input_ids=torch.tensor([ids]))
        nulls.append((outputs.start_logits[0, 0] + outputs.end_logits[0, 0]).item())
        inside = [token for token, part in enumerate(encoding.sequence_ids(number)) if part == 1]
        for first in inside:
            for last in (token for token in inside if first <= token < first + longest):
                score = (outputs.start_logits[0, first] + outputs.end_logits[0, last]).item()
                offsets = encoding["offset_mapping"][number]
                best = max(best, (score, offsets[first][0], offsets[last][1]))
    return best, min(nulls)


def predictions_of(task, model, rows):
    encoded = task.encode({name: rows[name] for name in ("question", "context")})
    with torch.inference_mode():
        windows = task.predict(model, task.collator()(inputs_of(encoded)))
    groups = {}
    for row, prediction in zip(encoded["row"], windows, strict=True):
        groups.setdefault(row, []).append(prediction)
    return [task.merge(groups[row]) for row in sorted(groups)]


def test_predictions_are_the_best_spans_of_a_plain_loop(tokenizer, model):
    rows = {
        "question": ["the plot", "good film", "movie", "very good"],
        "context": [CONTEXT, "not bad", "a poor movie, and a very dull plot", f"{CONTEXT}. {CONTEXT}!"],
    }
    predictions = predictions_of(bound(tokenizer, max_answer_length=3), model, rows)
    for row, prediction in enumerate(predictions):
        (_, start, end), _ = plain_answer(model, tokenizer, rows, row, longest=3)
        assert (prediction["start"], prediction["end"]) == (start, end)
        assert prediction["answer"] == rows["context"][row][start:end]
        assert prediction["score"] == max(prediction["scores"].values())
        assert "null_difference" not in prediction
    assert json.loads(json.dumps(predictions)) == predictions


def test_scores_are_probabilities_among_the_best_answers(tokenizer, model):
    rows = rows_of(answer("good", 13), context="not bad")
    (prediction,) = predictions_of(bound(tokenizer), model, rows)
    assert set(prediction["scores"]) == {"not", "bad", "not bad"}
    assert sum(prediction["scores"].values()) == pytest.approx(1.0)
    (best,) = predictions_of(bound(tokenizer, n_best=1), model, rows)
    assert best["scores"] == {prediction["answer"]: 1.0}


@pytest.mark.parametrize("above", [True, False])
def test_no_answer_is_said_above_the_threshold(tokenizer, model, above):
    rows = rows_of(answer("good", 13))
    (score, start, end), null = plain_answer(model, tokenizer, rows, 0, longest=30)
    threshold = null - score + (-0.01 if above else 0.01)
    (prediction,) = predictions_of(bound(tokenizer, unanswerable=True, null_threshold=threshold), model, rows)
    assert prediction["null_difference"] == pytest.approx(null - score, abs=1e-5)
    expected = ("", 0, 0) if above else (CONTEXT[start:end], start, end)
    assert (prediction["answer"], prediction["start"], prediction["end"]) == expected
    assert prediction["score"] == prediction["scores"][prediction["answer"]]


def test_evaluation_scores_the_same_answers_as_prediction(tokenizer, model):
    rows = {"question": ["the plot", "good film"], "context": [CONTEXT, "not bad"]}
    task = bound(tokenizer)
    predictions = predictions_of(task, model, rows)
    right = answer(predictions[0]["answer"], predictions[0]["start"])
    wrong = next(word for word in ("not", "bad") if word not in predictions[1]["answer"].split() or word == "bad")
    rows["answers"] = [right, answer(wrong, rows["context"][1].index(wrong))]
    inputs, metrics = inputs_of(task.encode(rows)), task.metrics()
    for part in (inputs[2:], inputs[:2]):  # the windows of row 0 lie in two batches
        task.evaluate(model, task.collator()(part), metrics)
    expected = 50.0 + 50.0 * (predictions[1]["answer"] == wrong)
    assert metrics.compute()["exact_match"].item() == expected


@pytest.mark.parametrize("unanswerable", [False, True])
def test_what_can_tell_the_best_checkpoint_is_among_the_metrics(tokenizer, model, unanswerable):
    task = bound(tokenizer, unanswerable=unanswerable)
    metrics = task.metrics()
    rows = rows_of(answer("good", 13), *([{"text": [], "answer_start": []}] if unanswerable else []))
    loss = task.evaluate(model, batch_of(task, rows), metrics)
    assert loss.isfinite()
    results = {name: value.tolist() for name, value in metrics.compute().items()}
    assert set(task.monitors) <= set(results)
    assert len(list(task.report(results))) == (2 if unanswerable else 0)


# faults


def faults(**columns):
    values = {"question": "good", "context": CONTEXT, "answers": answer("good", 13)}
    number = max(map(len, columns.values()))
    return Dataset.from_dict({name: columns.get(name, [value] * number) for name, value in values.items()})


def test_answers_that_are_not_in_their_context_are_named_with_their_offset():
    rows = faults(answers=[answer("good", 13), answer("good", 14), answer("the", -3), answer(" ", 3)])
    (problem,) = QuestionAnswering().check(rows)
    assert (list(problem.rows), problem.column) == ([1, 2, 3], "answers")
    assert problem.what == "the answer 'good' is not in the context at offset 14; there stands 'ood '."


def test_questions_without_answer_are_a_fault_unless_there_may_be_some():
    rows = faults(answers=[answer("good", 13), {"text": [], "answer_start": []}])
    (problem,) = QuestionAnswering().check(rows)
    assert list(problem.rows) == [1]
    assert "task.unanswerable: true" in problem.cure
    assert list(QuestionAnswering(unanswerable=True).check(rows)) == []


@pytest.mark.parametrize(
    "value", [{"text": ["good"], "answer_start": []}, {"text": [None], "answer_start": [13]}, "good", None]
)
def test_answers_of_another_shape_are_a_fault(value):
    (problem,) = QuestionAnswering().check(faults(answers=[value, value]))
    assert list(problem.rows) == [0, 1]
    assert "answer_start" in problem.cure


@pytest.mark.parametrize("column", ["question", "context"])
def test_missing_and_empty_text_is_a_fault(column):
    rows = faults(**{column: ["good", None, "", " \n"]}).remove_columns("answers")
    (problem,) = QuestionAnswering().check(rows)
    assert (list(problem.rows), problem.column) == ([1, 2, 3], column)


def test_numbers_are_no_questions():
    (problem,) = QuestionAnswering().check(faults(question=[3, 4]))
    assert (list(problem.rows), problem.what) == ([0, 1], "this is no text: 3.")


def test_windows_without_room_for_the_context_are_refused(tokenizer):
    with pytest.raises(InputError, match="cannot overlap by 5") as caught:
        bound(tokenizer, doc_stride=5)
    assert caught.value.problems[0].where == "task.doc_stride"
    assert len(bound(tokenizer, doc_stride=4).encode(rows_of(answer("good", 13)))["row"]) == 5


def test_a_tokenizer_that_knows_no_characters_is_refused():
    with pytest.raises(InputError, match="CanineTokenizer cannot say which characters"):
        QuestionAnswering().bind(CanineTokenizer())


@pytest.mark.parametrize(("key", "value"), [("n_best", 0), ("max_answer_length", 0), ("doc_stride", -1)])
def test_settings_that_make_no_sense_are_refused(key, value):
    with pytest.raises(InputError) as caught:
        QuestionAnswering(**{key: value})
    assert caught.value.problems[0].where == f"task.{key}"
