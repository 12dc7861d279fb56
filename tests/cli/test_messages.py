import logging
import os
import subprocess
import sys
import warnings

import pytest
from huggingface_hub.utils import HfHubHTTPError, hf_raise_for_status, http_backoff

from lit_hf.cli import messages

pytestmark = pytest.mark.usefixtures("messages_restored")


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    for name in messages.RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_our_notes_are_plain_and_warnings_are_marked(capsys):
    messages.install()
    logging.getLogger("lit_hf.data").info("tokenized train")
    logging.getLogger("lit_hf.data").warning("few rows")
    logging.getLogger("lit_hf.data").debug("nothing")
    assert capsys.readouterr().err == "tokenized train\nwarning: few rows\n"


def test_libraries_may_warn_but_not_chat(capsys):
    messages.install()
    logging.getLogger("some_library").warning("careful")
    chatty = logging.getLogger("some_library.chatty")
    chatty.setLevel(logging.INFO)
    chatty.info("try our service")
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU gemm_4bit_forward")
    assert capsys.readouterr().err == "warning: careful\n"


def test_with_debug_libraries_say_what_they_want_to(capsys):
    messages.install(debug=True)
    chatty = logging.getLogger("some_library.chatty")
    chatty.setLevel(logging.INFO)
    chatty.info("try our service")
    assert capsys.readouterr().err == "try our service\n"


def test_only_the_first_rank_tells_our_notes_and_warnings(capsys, monkeypatch):
    messages.install()
    monkeypatch.setenv("LOCAL_RANK", "1")
    logging.getLogger("lit_hf").info("once is enough")
    logging.getLogger("lit_hf").warning("there is no validation split")
    logging.getLogger("a_library").warning("rank 1 is slow")
    assert capsys.readouterr().err == "warning: rank 1 is slow\n"


def test_installing_again_says_nothing_twice(capsys):
    messages.install()
    messages.install()
    logging.getLogger("lit_hf").info("once")
    assert capsys.readouterr().err == "once\n"


def test_python_warnings_are_one_line_and_those_for_developers_are_left_out(capsys):
    with warnings.catch_warnings():
        messages.install()
        warnings.warn("two\n lines", UserWarning, stacklevel=1)
        warnings.warn("the API will change", FutureWarning, stacklevel=1)
        warnings.warn("val_dataloader does not have many workers", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: two lines\n"


def test_what_the_user_set_is_kept(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    messages.install()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"


def test_errors_are_plain_where_there_is_no_terminal(capsys):
    messages.print_error("it failed")
    assert capsys.readouterr().err == "error: it failed\n"


def test_lightning_adds_no_handler_beside_ours():
    script = (
        "from lit_hf.cli import messages; messages.install()\n"
        "import logging, lightning\n"
        "lightning.seed_everything(3)\n"
        "logging.getLogger('lightning.pytorch').warning('careful')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert (done.stdout, done.stderr) == ("", "warning: careful\n")


def test_the_hub_s_client_tells_in_one_line_that_it_asks_again(capsys, hub):
    messages.install()
    before = len(hub.requests)
    hub.fail("org/model", 503)
    with pytest.raises(HfHubHTTPError):
        hf_raise_for_status(http_backoff("GET", f"{hub.url}/api/models/org/model", max_retries=3))
    assert len(hub.requests) - before == 4
    assert capsys.readouterr().err == "warning: the Hub answers with status 503; it is asked again, for some seconds.\n"
