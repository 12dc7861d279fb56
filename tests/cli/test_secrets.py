import pytest

from lit_hf.cli.reading import read_option
from lit_hf.cli.secrets import find_secrets

HASH = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("token", "x"),
        ("model.hub_token", "x"),
        ("trainer.logger.init_args.api_key", "x"),
        ("a.apiKey", "x"),
        ("a.password", "1234"),
        ("model.checkpoint", "hf_abcdefghijklmnopqrstuvwxyz"),
        ("data.source.path", "https://user:hf_abcdefghijklmnopqrstuvwxyz@huggingface.co/x"),
        ("a.note", HASH),
        ("a.note", "ghp_abcdefghijklmnopqrstuvwxyz"),
        ("a", "{b: {token: x}}"),
        ("data.source.train", "https://someone:planted@example.org/train.jsonl"),
        ("data.source.train", "https://:planted@example.org/train.jsonl"),
        ("data.source.train", "data/planted-password/train.jsonl"),
        ("trainer.logger.init_args.note", "it is planted-password"),
    ],
)
def test_secrets_are_found_by_key_or_value_and_not_shown(key, text, monkeypatch):
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "planted-password")
    ((_, problem),) = find_secrets(key, read_option(text))
    assert problem.where.startswith(key)
    assert text not in str(problem) and "planted" not in str(problem)
    assert "hf auth login" in problem.cure


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("data.tokenizer.checkpoint", "x"),
        ("token", "null"),
        ("model.config.use_auth_token", "false"),
        ("task.token_column", "tokens"),
        ("data.max_tokens", "3"),
        ("model.revision", HASH),
        ("model.checkpoint", "hf_internal/tiny-bert"),
        ("model.checkpoint", "/home/someone/keys/model"),
        ("data.source.train", "https://example.org/a:b@c.jsonl"),
        ("task.prompt", "mail me: someone@example.org"),
    ],
)
def test_what_only_looks_like_one_is_let_pass(key, text, monkeypatch):
    monkeypatch.setenv("PATH_OF_KEYS", "/home/someone/keys")
    assert list(find_secrets(key, read_option(text))) == []
