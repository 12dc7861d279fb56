"""What `make install` installs has versions that are written down once, and hashes."""

import configparser
import re
import subprocess

from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import ROOT

PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", re.MULTILINE)


def pins(name):
    return dict(PIN.findall((ROOT / name).read_text()))


def test_lock_and_constraints_name_the_same_versions():
    constraints = pins("constraints.txt")
    assert "torch" in constraints
    assert pins("requirements.lock") == {name: pin for name, pin in constraints.items() if name != "torch"}


def test_everything_in_the_lock_has_hashes():
    blocks = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text())
    locked = [block for block in blocks if PIN.match(block)]
    assert len(locked) == len(pins("requirements.lock"))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", block) for block in locked)


def test_lightning_is_newer_than_its_compromised_releases():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = [Requirement(line) for line in config["options"]["install_requires"].split()]
    (admitted,) = (one.specifier for one in required if one.name == "lightning")
    assert not any(admitted.contains(version) for version in ("2.6.0", "2.6.1", "2.6.4", "2.6.5"))
    for name in ("constraints.txt", "requirements.lock"):
        assert Version(pins(name)["lightning"]) >= Version("2.6.6")
        assert Version(pins(name)["pytorch-lightning"]) >= Version("2.6.6")


def test_what_is_pinned_is_what_lit_hf_admits():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    pinned = {name.replace("_", "-").lower(): version for name, version in pins("constraints.txt").items()}
    for line in config["options"]["install_requires"].split():
        one = Requirement(line)
        assert one.specifier.contains(pinned[one.name.replace("_", "-").lower()]), line


def test_make_installs_what_is_locked_by_its_hashes_first(tmp_path):
    command = ["make", "-n", "-C", str(ROOT), "install", f"VENV={tmp_path / 'new'}"]
    steps = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    locked, rest = steps.index("--requirement requirements.lock"), steps.index("--constraint constraints.txt")
    assert locked < rest
    assert "--require-hashes --no-deps" in steps[:locked]
