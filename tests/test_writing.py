import os
import stat

import pytest

from lit_hf.writing import flush, lock, replacing, write_atomically


def test_a_failed_write_leaves_the_old_text_and_no_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_text_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("old")
    with replacing(path) as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_has_the_rights_of_any_other(tmp_path):
    write_atomically(tmp_path / "ours", "text")
    (tmp_path / "plain").write_text("text")
    ours, plain = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain"))
    assert ours == plain


def test_writing_does_not_touch_the_rights_of_what_other_threads_make(tmp_path, monkeypatch):
    masks = []
    monkeypatch.setattr(os, "umask", lambda mask: masks.append(mask) or 0)
    write_atomically(tmp_path / "ours", "text")
    assert masks == []


def test_a_folder_is_flushed_with_all_that_is_in_it(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "weights").write_text("1")
    flushed, fsync = [], os.fsync

    def record(handle):
        flushed.append(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    flush(tmp_path)
    there = (tmp_path, tmp_path / "inner", tmp_path / "inner" / "weights")
    assert sorted(flushed) == sorted(path.stat().st_ino for path in there)


def test_a_lock_is_one_process_s_until_its_handle_is_closed(tmp_path):
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    assert lock(first) is True
    assert lock(second) is False
    os.close(first)
    assert lock(second) is True
    os.close(second)
