import pickle

import pytest
import torch
from torch import nn

from lit_hf.cli.runs import load_run, load_weights, read_checkpoint, results_of
from lit_hf.errors import InputError
from lit_hf.run import RunFolder


class Hostile:
    def __reduce__(self):
        return print, ("was run",)


def test_a_checkpoint_is_tensors_and_plain_values(tmp_path):
    torch.save({"state_dict": {"weight": torch.ones(2)}, "epoch": 1}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt")["state_dict"]["weight"].tolist() == [1, 1]


def test_a_missing_checkpoint_is_told(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_a_checkpoint_that_was_cut_off_is_told(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"weight": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="cannot be read"):
        read_checkpoint(path)


def test_a_hostile_checkpoint_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"weight": Hostile()}, tmp_path / "a.ckpt", pickle_module=pickle)
    with pytest.raises(InputError, match="cannot be read"):
        read_checkpoint(tmp_path / "a.ckpt")
    assert "was run" not in capsys.readouterr().out


def test_weights_of_another_model_are_refused():
    with pytest.raises(InputError, match="do not fit the model"):
        load_weights(nn.Linear(2, 2), {"state_dict": {"weight": torch.ones(3, 3), "bias": torch.ones(3)}})


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(InputError, match="no run is here"):
        load_run(RunFolder(tmp_path), tmp_path / "state.ckpt")


def test_results_are_those_of_the_weights_that_are_there():
    state = {"global_step": 7, "results": {"val/loss": 0.5}, "results_at": 7}
    assert results_of(state) == {"loss": 0.5}
    assert results_of({**state, "global_step": 9}) == {}
