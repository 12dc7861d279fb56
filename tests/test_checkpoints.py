import json
from pathlib import Path

import pytest

from lit_hf.checkpoints import (
    MANIFEST,
    STATE,
    Best,
    Damaged,
    Manifest,
    folder_name,
    found,
    newest_valid,
    partial_folder,
    publish,
    remove_leftovers,
    verify,
)


def write(checkpoints: Path, step: int, content: bytes = b"weights") -> Path:
    folder = checkpoints / folder_name(step)
    partial_folder(folder).mkdir(parents=True)
    (partial_folder(folder) / STATE).write_bytes(content)
    publish(folder, Manifest(step, 1, 2, Best(folder.name, 0.5), {"torch": "2.13.0"}))
    return folder


def test_a_published_checkpoint_is_verified_and_says_what_it_holds(tmp_path):
    folder = write(tmp_path, 120)
    manifest = verify(folder)
    assert (manifest.step, manifest.epoch, manifest.world_size) == (120, 1, 2)
    assert manifest.best == Best("step-00000120", 0.5)
    assert manifest.versions == {"torch": "2.13.0"}
    digest = "9c8eeb1a00b3ced7d1eed1a51a33f12bd92b4c1c1d46b2fd41b5fa0f4e8a0e0a"
    assert manifest.files[STATE]["size"] == 7 and len(manifest.files[STATE]["sha256"]) == len(digest)
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, STATE]
    assert not list(tmp_path.glob(".*"))


def test_shards_in_a_folder_are_part_of_the_checkpoint(tmp_path):
    folder = tmp_path / folder_name(3)
    shards = partial_folder(folder) / STATE
    shards.mkdir(parents=True)
    (shards / "__0_0.distcp").write_bytes(b"0")
    (shards / "__1_0.distcp").write_bytes(b"1")
    publish(folder, Manifest(3, 0, 2, Best(folder.name, None)))
    assert set(verify(folder).files) == {f"{STATE}/__0_0.distcp", f"{STATE}/__1_0.distcp"}
    (folder / STATE / "__1_0.distcp").unlink()
    with pytest.raises(Damaged, match=r"__1_0\.distcp is missing"):
        verify(folder)


def test_the_newest_valid_one_is_taken_and_the_others_are_named_with_what_is_wrong(tmp_path):
    good = write(tmp_path, 1)
    cut, flipped, unfinished, unreadable = (write(tmp_path, step) for step in (9, 10, 100, 1000))
    (cut / STATE).write_bytes(b"weig")
    (flipped / STATE).write_bytes(b"weightS")
    (unfinished / MANIFEST).unlink()
    (unreadable / MANIFEST).write_text("{")
    newest = newest_valid(tmp_path)
    assert newest.folder == good
    assert [path for path, _ in newest.skipped] == [unreadable, unfinished, flipped, cut]
    reasons = [reason for _, reason in newest.skipped]
    assert reasons[0].startswith("its manifest.json cannot be read")
    assert reasons[1] == "it has no manifest.json: it was never finished"
    assert reasons[2] == "state.ckpt is not what was written: its SHA-256 differs"
    assert reasons[3] == "state.ckpt has 4 bytes instead of 7: it was cut off"


def test_it_may_be_found_by_sizes_without_reading_what_is_large(tmp_path):
    write(tmp_path, 1)
    flipped, cut = write(tmp_path, 2), write(tmp_path, 3)
    (flipped / STATE).write_bytes(b"weightS")
    (cut / STATE).write_bytes(b"weig")
    newest = newest_valid(tmp_path, contents=False)
    assert newest.folder == flipped
    assert [path for path, _ in newest.skipped] == [cut]


def test_a_manifest_that_names_no_state_is_no_checkpoint(tmp_path):
    folder = write(tmp_path, 1)
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**values, "files": {}}))
    with pytest.raises(Damaged, match=r"names no state\.ckpt"):
        verify(folder)


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    write(tmp_path, 5)
    folder = write(tmp_path, 5, b"others")
    assert (folder / STATE).read_bytes() == b"others"
    assert verify(folder).step == 5
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_leftovers_of_a_crash_are_no_checkpoints_and_are_removed(tmp_path):
    folder = write(tmp_path, 5)
    partial_folder(tmp_path / folder_name(6)).mkdir()
    assert found(tmp_path) == [folder]
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_crash_between_the_renames_of_a_replacement_loses_nothing(tmp_path):
    folder = write(tmp_path, 5)
    folder.rename(partial_folder(folder).with_suffix(".replaced"))
    remove_leftovers(tmp_path)
    assert verify(folder).step == 5


def test_without_checkpoints_there_is_none(tmp_path):
    assert newest_valid(tmp_path / "nowhere") == (None, [])
