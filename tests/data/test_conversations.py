import pytest

from lit_hf.data.conversations import KNOWN_ROLES, Columns, ConversationError, conversation

ASKED = {"role": "user", "content": "What is red?"}
ANSWERED = {"role": "assistant", "content": "A colour."}
MESSAGES = Columns(messages="messages")


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"messages": [ASKED, ANSWERED]}, MESSAGES),
        (
            {"c": [{"from": "human", "value": "What is red?"}, {"from": "gpt", "value": "A colour."}]},
            Columns(messages="c"),
        ),
        ({"p": "What is red?", "a": "A colour."}, Columns(prompt="p", completion="a")),
        ({"p": [ASKED], "a": [ANSWERED]}, Columns(prompt="p", completion="a")),
        ({"i": "What is red?", "x": "", "o": "A colour."}, Columns(instruction="i", input="x", output="o")),
        ({"i": "What is red?", "x": None, "o": "A colour."}, Columns(instruction="i", input="x", output="o")),
    ],
)
def test_every_shape_becomes_the_same_messages(row, columns):
    assert conversation(row, columns) == [ASKED, ANSWERED]


def test_the_input_follows_its_instruction():
    columns = Columns(instruction="i", input="x", output="o")
    assert conversation({"i": "Name the colour.", "x": "Red.", "o": "Red"}, columns)[0] == {
        "role": "user",
        "content": "Name the colour.\n\nRed.",
    }


def test_a_row_without_its_answer_is_a_question():
    assert conversation({"p": "What is red?"}, Columns(prompt="p", completion="a")) == [ASKED]


def test_a_system_prompt_is_only_given_where_a_row_has_none():
    own = {"role": "system", "content": "Be long."}
    given = {"role": "system", "content": "Be brief."}
    assert conversation({"messages": [ASKED]}, MESSAGES, "Be brief.") == [given, ASKED]
    assert conversation({"messages": [own, ASKED]}, MESSAGES, "Be brief.") == [own, ASKED]


def test_nulls_that_a_table_put_into_messages_go_and_other_keys_stay():
    call = {"function": {"name": "f", "arguments": {"a": 1, "b": None}}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call], "name": None, "from": None}
    assert conversation({"messages": [turn]}, MESSAGES) == [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    ]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([{"role": "bard", "content": "a"}], "turn 1: the role 'bard' is not known."),
        ([ASKED, {"role": "assistant", "content": " "}], "turn 2: the assistant turn is empty."),
        ([ASKED, {"role": "assistant", "content": None}], "turn 2: the assistant turn is empty."),
        ([{"role": "user", "content": ""}], "turn 1: the user turn is empty."),
        ([{"role": "user", "content": 5}], "turn 1: the content is no text: 5."),
        ([{"text": "a"}], "turn 1: this is no message; it has 'text'."),
        (["a"], "turn 1: this is no message; it is 'a'."),
        ([], "there are no messages."),
        (7, "this is no text and no list of messages: 7."),
    ],
)
def test_what_is_no_conversation_is_told(value, what):
    with pytest.raises(ConversationError) as caught:
        conversation({"messages": value}, MESSAGES)
    assert (caught.value.column, caught.value.what) == ("messages", what)


def test_unknown_roles_are_told_with_those_known_and_can_be_mapped():
    turn = {"role": "bard", "content": "a"}
    with pytest.raises(ConversationError) as caught:
        conversation({"messages": [turn]}, MESSAGES)
    assert "system, developer, user, assistant, tool, human, gpt" in caught.value.cure
    assert "task.roles: {bard: assistant}" in caught.value.cure
    roles = {**KNOWN_ROLES, "bard": "assistant"}
    assert conversation({"messages": [turn]}, MESSAGES, roles=roles) == [{"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "column"),
    [({"i": " ", "x": "a"}, "i"), ({"i": 5, "x": "a"}, "i"), ({"i": "a", "x": ["b"]}, "x")],
)
def test_faults_of_instructions_name_their_column(row, column):
    with pytest.raises(ConversationError) as caught:
        conversation(row, Columns(instruction="i", input="x", output="o"))
    assert caught.value.column == column
