import pytest
from transformers import AutoTokenizer

from lit_hf.data.blocks import (
    LONGEST_DEFAULT,
    byte_sizes,
    cut_blocks,
    resolve_length,
)
from lit_hf.data.tokenization import train_tokenizer
from lit_hf.errors import InputError


def test_nothing_is_lost_between_blocks():
    assert cut_blocks([1, 2, 3, 4, 5, 6, 7], 3) == [[1, 2, 3], [4, 5, 6], [7]]
    assert cut_blocks([1, 2, 3], 3) == [[1, 2, 3]]
    assert cut_blocks([], 3) == []


def test_bytes_between_tokens_count_with_the_later_one_and_those_after_the_last_with_the_end():
    #            "ab" "é"(2 bytes)  " " and "c"   "  " at the end
    assert byte_sizes("abé c  ", [(0, 2), (2, 3), (4, 5)]) == [2, 2, 2, 2]
    # a character of three bytes in two tokens counts with the first
    assert byte_sizes("한x", [(0, 1), (0, 1), (1, 2)]) == [3, 0, 1, 0]
    assert byte_sizes(" \n", []) == [2]


@pytest.mark.parametrize("text", ["plain words", "Grüße, 한국어 문장 😀 und mehr ", "é e\u0301 \u00a0x", "a\tb\r\nc"])
def test_the_bytes_of_all_tokens_are_those_of_the_text(tiny_text_model, text):
    for tokenizer in (
        AutoTokenizer.from_pretrained(tiny_text_model),
        train_tokenizer(iter(["some words to train on", "한국어"]), 300),
    ):
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        sizes = byte_sizes(text, offsets)
        assert len(sizes) == len(offsets) + 1
        assert sum(sizes) == len(text.encode())
        assert min(sizes) >= 0


def test_the_length_is_the_tokenizer_s_limit_and_no_more_than_the_default(tiny_text_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_text_model)
    assert resolve_length(tokenizer, None) == 64
    assert resolve_length(tokenizer, 32) == 32
    for wrong, told in ((65, "longer than the limit: 64"), (1, "1 is too small")):
        with pytest.raises(InputError, match=told) as error:
            resolve_length(tokenizer, wrong)
        assert error.value.problems[0].where == "task.block_length"
    tokenizer.model_max_length = 10**30
    assert resolve_length(tokenizer, None) == LONGEST_DEFAULT
