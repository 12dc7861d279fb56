import json
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, torch
from lit_hf.training.host_memory import keep_freed_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12 * 2**20)  # 48 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

new_pages()
given_back = new_pages()
keep_freed_memory()
new_pages()
print(json.dumps([given_back, new_pages()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_what_a_tensor_has_had_serves_the_next_one():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    given_back, kept = json.loads(done.stdout)
    if given_back < 1000:
        pytest.skip("the system hands out memory in huge pages")
    assert kept < given_back / 4
