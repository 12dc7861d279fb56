"""How much memory a model takes while it loads: measured in a process of its own, where nothing else was freed."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

SIZES = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 5, "num_attention_heads": 8}

RUN = """
import json, sys, threading, time
from pathlib import Path
from transformers import AutoTokenizer
from lit_hf.models.loading import Base
from lit_hf.tasks import TextClassification

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def watch():
    while not done.is_set():
        peaks.append(anonymous())
        time.sleep(0.001)

settings, folder, tiny = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
task = TextClassification(labels=["bad", "good"])
task.bind(AutoTokenizer.from_pretrained(tiny))
Base(tiny).build(task)  # what is imported and allocated by the first model is not the second one's
peaks, done, before = [], threading.Event(), anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
model, _ = Base(**settings).build(task)
done.set()
watcher.join()
weights = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({"weights": weights, "peak": max(peaks) - before, "dtype": str(model.dtype)}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    config = LlamaConfig(vocab_size=70, pad_token_id=0, **SIZES)
    LlamaForSequenceClassification(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["another type", "its own type", "from scratch"])
def test_a_model_is_built_in_the_memory_of_its_weights(checkpoint, tiny_text_model, kind):
    settings = {
        "another type": {"checkpoint": str(checkpoint), "dtype": "float32"},
        "its own type": {"checkpoint": str(checkpoint), "dtype": "auto"},
        "from scratch": {"config": {"model_type": "llama", **SIZES}},
    }[kind]
    command = [sys.executable, "-c", RUN, json.dumps(settings), str(checkpoint), str(tiny_text_model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["weights"] > 30e6
    assert measured["dtype"] == ("torch.bfloat16" if kind == "its own type" else "torch.float32")
    assert measured["peak"] < 1.3 * measured["weights"]
