from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lit_hf.data.tokenization import TokenizerSettings, TokenizerTraining, load_tokenizer, train_tokenizer
from lit_hf.errors import InputError

CODE = [
    "def add(a, b):\n    return a + b\n",
    "class Stack:\n    def push(self, item):\n        self.items.append(item)\n",
]
PROSE = ["Ein Text, der länger ist.", "한국어 문장도 있다.", "The film was not very good."]


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    return train_tokenizer(iter((CODE + PROSE) * 3), 400)


@pytest.mark.parametrize("text", [*CODE, *PROSE, "never seen: \u2603 \U0001f600\t\x00"])
def test_a_trained_tokenizer_knows_every_text(trained: PreTrainedTokenizerFast, text: str) -> None:
    ids = trained(text)["input_ids"]

    assert trained.unk_token_id not in ids
    assert trained.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text


def test_a_trained_tokenizer_frames_single_texts_and_pairs(trained: PreTrainedTokenizerFast) -> None:
    single, pair = trained("good"), trained("good", "film")

    assert trained.convert_ids_to_tokens(single["input_ids"])[:: len(single["input_ids"]) - 1] == ["[CLS]", "[SEP]"]
    assert pair["input_ids"].count(trained.sep_token_id) == 2
    assert set(pair) == {"input_ids", "attention_mask"}
    assert trained("good film " * 50, truncation=True, max_length=8)["input_ids"][-1] == trained.sep_token_id


def test_a_trained_tokenizer_has_all_special_tokens_first(trained: PreTrainedTokenizerFast) -> None:
    tokens = [
        trained.pad_token_id,
        trained.unk_token_id,
        trained.cls_token_id,
        trained.sep_token_id,
        trained.mask_token_id,
    ]

    assert tokens == [0, 1, 2, 3, 4]
    assert len(trained) <= 400


def test_indentation_is_few_tokens(trained: PreTrainedTokenizerFast) -> None:
    assert len(trained.tokenize("        return")) < len("        return") / 2


def test_a_trained_tokenizer_saves_and_loads(trained: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)

    assert loaded(CODE, PROSE[:2])["input_ids"] == trained(CODE, PROSE[:2])["input_ids"]
    assert loaded.pad(loaded(CODE), return_tensors="pt")["input_ids"].shape[0] == 2
    assert loaded.special_tokens_map == trained.special_tokens_map


def test_training_is_the_same_in_another_process(trained: PreTrainedTokenizerFast) -> None:
    code = (
        "from lit_hf.data.tokenization import train_tokenizer; from tests.data.test_tokenization import CODE, PROSE;"
        "print(train_tokenizer(iter((CODE + PROSE) * 3), 400).backend_tokenizer.to_str())"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == trained.backend_tokenizer.to_str()


def test_a_tokenizer_is_trained_on_the_input_columns_once(caplog: pytest.LogCaptureFixture) -> None:
    rows = Dataset.from_dict({"text": PROSE, "words": [["zymurgy"] * 9, ["zymurgy"], []], "label": ["xqxqxqxq"] * 3})
    settings = TokenizerSettings(train=TokenizerTraining(vocab_size=290))
    caplog.set_level(logging.INFO, "lit_hf")

    first = load_tokenizer(settings, rows, ["text", "words"])
    second = load_tokenizer(settings, rows, ["text", "words"])

    assert len(first.tokenize(" zymurgy")) < 4
    assert len(first.tokenize("xqxqxqxq")) == 8
    assert first.get_vocab() == second.get_vocab()
    assert caplog.messages == [
        "tokenizer: 290 tokens, trained on the training rows",
        "tokenizer: trained before on these rows, reused from the cache",
    ]


def test_other_settings_train_another_tokenizer() -> None:
    rows = Dataset.from_dict({"text": CODE, "more": PROSE[1:]})

    def vocabulary(size: int, *columns: str) -> dict[str, int]:
        return load_tokenizer(TokenizerSettings(train=TokenizerTraining(size)), rows, columns).get_vocab()

    assert len(vocabulary(280, "text")) == 280
    assert vocabulary(280, "text") != vocabulary(280, "more")
    assert len(vocabulary(270, "text")) == 270


def test_a_checkpoint_is_loaded_and_its_own_limit_kept(tiny_text_model: Path) -> None:
    tokenizer = load_tokenizer(TokenizerSettings(), checkpoint=str(tiny_text_model))

    assert tokenizer("the film")["input_ids"] == [2, 5, 6, 3]
    assert tokenizer.model_max_length == 64


def test_the_settings_come_before_the_models_checkpoint(tiny_text_model: Path) -> None:
    assert load_tokenizer(TokenizerSettings(checkpoint=str(tiny_text_model)), checkpoint="not/there").vocab_size


def test_max_length_is_where_it_truncates(tiny_text_model: Path) -> None:
    tokenizer = load_tokenizer(TokenizerSettings(), max_length=4, checkpoint=str(tiny_text_model))

    assert tokenizer("the film was good", truncation=True)["input_ids"] == [2, 5, 6, 3]


def without_padding(folder: Path, **special: str) -> str:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "<end>": 1, "a": 2, "b": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("special", "token", "word"),
    [({"eos_token": "<end>", "unk_token": "[UNK]"}, "<end>", "end"), ({"unk_token": "[UNK]"}, "[UNK]", "unknown")],
)
def test_a_token_pads_where_there_is_no_padding_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, special: dict[str, str], token: str, word: str
) -> None:
    caplog.set_level(logging.INFO, "lit_hf")

    tokenizer = load_tokenizer(TokenizerSettings(), checkpoint=without_padding(tmp_path, **special))

    assert tokenizer.pad_token == token
    assert caplog.messages == [f"The tokenizer has no padding token: its {word} token {token!r} pads."]


@pytest.mark.parametrize(
    ("settings", "arguments", "where", "what"),
    [
        (TokenizerSettings(), {}, "data.tokenizer", "no tokenizer is named"),
        (TokenizerSettings(checkpoint="./nowhere"), {}, "data.tokenizer.checkpoint", "there is no folder ./nowhere"),
        (TokenizerSettings(), {"checkpoint": "/nowhere"}, "model.checkpoint", "there is no folder /nowhere"),
        (TokenizerSettings(train=TokenizerTraining()), {}, "data.tokenizer.train", "no training rows"),
        (TokenizerSettings("a", train=TokenizerTraining()), {}, "data.tokenizer", "both"),
        (
            TokenizerSettings(train=TokenizerTraining(100)),
            {"rows": [{"text": "a"}]},
            "data.tokenizer.train.vocab_size",
            "100 tokens are too few",
        ),
    ],
)
def test_what_gives_no_tokenizer_is_told(settings: TokenizerSettings, arguments: dict, where: str, what: str) -> None:
    if "rows" in arguments:
        arguments = {"rows": Dataset.from_list(arguments["rows"]), "columns": ["text"]}

    with pytest.raises(InputError) as caught:
        load_tokenizer(settings, **arguments)

    (problem,) = caught.value.problems
    assert problem.where == where
    assert what in problem.what


def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')

    with pytest.raises(InputError, match="no tokenizer can be loaded from"):
        load_tokenizer(TokenizerSettings(), checkpoint=str(tmp_path))


def test_a_trained_tokenizer_says_where_texts_start_and_end(trained: PreTrainedTokenizerFast) -> None:
    ids = trained("good")["input_ids"]

    assert (ids[0], ids[-1]) == (trained.bos_token_id, trained.eos_token_id)
    assert (trained.bos_token, trained.eos_token) == ("[CLS]", "[SEP]")


def test_a_chat_template_is_text_or_a_file_and_is_saved_with_the_tokenizer(minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages }}é", encoding="utf-8")
    for given in ("{{ messages }}é", str(tmp_path / "chat.jinja")):
        load_tokenizer(TokenizerSettings(checkpoint=str(minilm), chat_template=given)).save_pretrained(tmp_path / "a")
        assert AutoTokenizer.from_pretrained(tmp_path / "a").chat_template == "{{ messages }}é"


def test_a_chat_template_that_is_neither_is_refused(minilm: Path) -> None:
    with pytest.raises(InputError, match=r"data\.tokenizer\.chat_template: 'chat\.jnja' is no Jinja template, and no"):
        load_tokenizer(TokenizerSettings(checkpoint=str(minilm), chat_template="chat.jnja"))
