import importlib
import inspect

import pytest

from lit_hf.cli.main import MODULES
from lit_hf.cli.verbs import VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_run_by_a_module_of_the_cli(verb):
    run = importlib.import_module(f"lit_hf.cli.{MODULES.get(verb, verb)}").run
    assert list(inspect.signature(run).parameters)[: 1 + (verb in MODULES)][-1] in ("arguments", "argv")


def test_what_a_verb_does_is_said_in_a_sentence():
    assert all(purpose[0].isupper() and purpose.endswith(".") and len(purpose) < 80 for purpose in VERBS.values())
