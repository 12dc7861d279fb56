import shutil
import threading

import pytest
import torch

from lit_hf.errors import Problem, TrainingError
from lit_hf.training.saving import CheckpointFiles, Writer, on_host


def test_work_is_done_in_order_beside_the_caller():
    writer, done, go_on = Writer(), [], threading.Event()
    writer.submit(go_on.wait)
    writer.submit(lambda: done.append(1))
    writer.submit(lambda: done.append(2))
    assert done == []
    go_on.set()
    writer.wait()
    assert done == [1, 2]
    writer.close()


def test_after_an_error_nothing_more_is_done_and_it_is_raised_once():
    writer, done = Writer(), []

    def fail():
        raise OSError("the disk is gone")

    writer.submit(fail)
    writer.submit(lambda: done.append(1))
    writer.wait()
    assert done == [] and writer.has_failed
    with pytest.raises(TrainingError, match="could not be written: the disk is gone"):
        writer.check()
    writer.check()
    writer.submit(lambda: done.append(2))  # such as its publication, which was on its way
    writer.wait()
    assert done == []


def test_errors_of_our_own_are_raised_as_they_are():
    writer = Writer()
    error = TrainingError(Problem("here", "this."))

    def fail():
        raise error

    writer.submit(fail)
    writer.wait()
    with pytest.raises(TrainingError) as raised:
        writer.check()
    assert raised.value is error


def test_what_went_wrong_in_one_process_is_an_error_in_all():
    here, there, told = Writer(), Writer(), []

    def fail():
        raise OSError("the disk is gone")

    there.submit(fail)
    there.agree(lambda is_well: told.append(is_well) or is_well)  # asked though it failed: the others wait for it
    there.wait()
    assert told == [False]
    here.agree(lambda is_well: told.append(is_well) or all(told))
    here.submit(lambda: told.append("published"))
    here.wait()
    assert told == [False, True]
    with pytest.raises(TrainingError, match="another process could not write"):
        here.check()
    with pytest.raises(TrainingError, match="the disk is gone"):
        there.check()


def test_what_is_written_is_the_state_at_the_time_of_the_call(tmp_path):
    writer, go_on = Writer(), threading.Event()
    files = CheckpointFiles(writer)
    weights = torch.ones(3)
    writer.submit(go_on.wait)
    files.save_checkpoint({"weights": weights, "tied": weights, "step": 1}, tmp_path / "state.ckpt")
    weights += 1
    go_on.set()
    writer.wait()
    state = files.load_checkpoint(tmp_path / "state.ckpt")
    assert state["weights"].tolist() == [1, 1, 1] and state["step"] == 1
    state["weights"][0] = 5
    assert state["tied"][0] == 5  # one tensor still


def test_tensors_that_are_views_of_one_are_told_apart():
    whole = torch.arange(6.0)
    copied = on_host([whole[:3], whole[3:], whole.view(2, 3)])
    assert [tensor.tolist() for tensor in copied] == [[0, 1, 2], [3, 4, 5], [[0, 1, 2], [3, 4, 5]]]


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 100, 20 * 2**20))
    writer = Writer()
    CheckpointFiles(writer).save_checkpoint({"weights": torch.zeros(2**21)}, tmp_path / "state.ckpt")
    writer.wait()
    with pytest.raises(TrainingError, match="the checkpoint needs 8 MiB, 20 MiB are free"):
        writer.check()
    assert not list(tmp_path.iterdir())


def test_loading_never_unpickles(tmp_path):
    torch.save({"weights": shutil.rmtree}, tmp_path / "state.ckpt")
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        CheckpointFiles(Writer()).load_checkpoint(tmp_path / "state.ckpt", weights_only=False)
