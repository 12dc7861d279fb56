import pytest

from lit_hf.data.chat_templates import TemplateError, render, render_trained, tokenize, turn_end
from tests.conversations import CHATML, CHATML_MARKED, chat_tokenizer

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is red?"},
    {"role": "assistant", "content": "A colour."},
    {"role": "user", "content": "And blue?"},
    {"role": "assistant", "content": "Another colour."},
]

TRAINED = {
    "assistant": ["A colour.<|im_end|>", "Another colour.<|im_end|>"],
    "last": ["Another colour.<|im_end|>"],
}


def labelled(tokenizer, messages, train_on="assistant", tools=None):
    return next(iter(tokenize(tokenizer, [render_trained(tokenizer, messages, tools, train_on)])))


def runs(tokenizer, labels):
    """Return the trained tokens as text, a text for each run of them."""
    texts, run = [], []
    for label in [*labels, -100]:
        if label != -100:
            run.append(label)
        elif run:
            texts.append(tokenizer.decode(run))
            run = []
    return texts


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED])
@pytest.mark.parametrize("train_on", ["assistant", "last"])
def test_the_assistant_s_turns_are_trained_with_their_end(template, train_on):
    tokenizer = chat_tokenizer(template)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    _, labels = labelled(tokenizer, TURNS, train_on)
    assert runs(tokenizer, labels) == TRAINED[train_on]


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED])
def test_labels_are_as_made_by_hand_token_by_token(template):
    tokenizer = chat_tokenizer(template)
    parts = [
        ("<|im_start|>user\nWhat is red?<|im_end|>\n<|im_start|>assistant\n", False),
        ("A colour.<|im_end|>", True),
        ("\n", False),
    ]
    expected_ids, expected_labels = [], []
    for text, trained in parts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        expected_ids += ids
        expected_labels += ids if trained else [-100] * len(ids)
    assert labelled(tokenizer, TURNS[1:3]) == (expected_ids, expected_labels)


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED])
def test_ids_and_masks_are_those_of_transformers(template):
    tokenizer = chat_tokenizer(template)
    ids, labels = labelled(tokenizer, TURNS)
    plain = tokenizer.apply_chat_template(TURNS, return_dict=True)
    assert ids == plain["input_ids"]
    tokenizer.chat_template = CHATML_MARKED
    marked = tokenizer.apply_chat_template(TURNS, return_dict=True, return_assistant_tokens_mask=True)
    assert [int(label != -100) for label in labels] == marked["assistant_masks"]


def test_all_but_the_first_token_are_trained_on_demand():
    tokenizer = chat_tokenizer()
    ids, labels = labelled(tokenizer, TURNS, "all")
    assert labels == [-100, *ids[1:]]


def test_a_template_without_an_end_token_trains_the_whole_turn():
    tokenizer = chat_tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    _, labels = labelled(tokenizer, TURNS[1:3])
    assert runs(tokenizer, labels) == ["assistant: A colour.\n"]
    assert turn_end(tokenizer) is None
    assert turn_end(chat_tokenizer()) == chat_tokenizer().eos_token_id


def test_tools_reach_the_template():
    tokenizer = chat_tokenizer("{% if tools %}{{ tools[0].name }}\n{% endif %}" + CHATML)
    assert render(tokenizer, TURNS, [{"name": "look_up"}]).startswith("look_up\n<|im_start|>")
    _, labels = labelled(tokenizer, TURNS, tools=[{"name": "look_up"}])
    assert runs(tokenizer, labels) == TRAINED["assistant"]


def test_a_template_that_rewrites_earlier_turns_is_refused_unless_only_the_last_is_trained():
    forgetful = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and not loop.last %}...{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = chat_tokenizer(forgetful)
    with pytest.raises(TemplateError, match="writes a turn otherwise once"):
        labelled(tokenizer, TURNS)
    _, labels = labelled(tokenizer, TURNS, "last")
    assert runs(tokenizer, labels) == ["Another colour.<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a\n{% if %}", r"does not render \(line 2\): Expected an expression"),
        ("a\n\n{{ messages[0].name.first }}", r"does not render \(line 3\): .*undefined|has no attribute"),
        ("{{ raise_exception('no system turns') }}", r"does not render \(line 1\): no system turns"),
    ],
)
def test_a_template_that_does_not_render_is_told_with_its_line(template, message):
    with pytest.raises(TemplateError, match=message):
        render(chat_tokenizer(template), TURNS)
