import pytest

from lit_hf.losses import output_head


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(output_head, "CHUNK", 5)
