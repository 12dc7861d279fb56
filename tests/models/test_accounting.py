from torch import nn

from lit_hf.models.accounting import count_parameters


def test_tied_and_frozen_parameters_are_counted_once_and_apart():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[1].weight
    model[0].requires_grad_(False)
    counted = count_parameters(model)
    assert counted == (16 + 4 + 4, 16 + 16 + 4 + 4)
    assert str(counted) == "24 of 40 parameters train (60.00%)"
