import pytest
import torch
from safetensors.torch import save_file

from lit_hf.models.damage import damage_problems, damaged_weights


@pytest.fixture
def folder(tmp_path):
    for name in ("one", "two"):
        save_file({"weight": torch.ones(100)}, tmp_path / f"{name}.safetensors")
    return tmp_path


def test_whole_weights_and_ids_have_no_damage(folder):
    assert list(damage_problems(str(folder))) == []
    assert list(damage_problems("google-bert/bert-base-uncased")) == []
    assert list(damage_problems(None)) == []


@pytest.mark.parametrize("size", [0, 5, 60, 400])
def test_each_file_that_was_cut_off_is_told(folder, size):
    path = folder / "two.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    (problem,) = damage_problems(str(folder))
    assert problem.what.startswith(f"the weights in {path} are damaged: ")
    assert problem.where == "model.checkpoint"
    (problem,) = damaged_weights(folder)
    assert problem.where == str(path) and problem.what.startswith("the file is damaged or cut off (")


def test_a_file_that_cannot_be_opened_is_damaged_too(folder):
    (folder / "one.safetensors").unlink()
    (folder / "one.safetensors").symlink_to(folder / "gone")
    assert next(problem.what for problem in damage_problems(str(folder))).startswith("the weights in ")
    assert len(list(damage_problems(str(folder)))) == len(list(damaged_weights(folder))) == 1
