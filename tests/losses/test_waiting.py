"""A training step asks nothing of the device: what a GPU would be waited for, the collator has found before."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_hf.losses import tokens as token_loss
from tests.losses.architectures import batch_of, model_of
from tests.losses.steps import lean


class Unasked(TorchDispatchMode):
    """Refuses what needs the numbers of a tensor, for which a GPU would have to be waited for."""

    ASKING = (
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.is_nonzero.default,
        torch.ops.aten.equal.default,
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in self.ASKING, func
        by_mask = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype is torch.bool for index in args[1]
        )
        assert not by_mask, "a mask as an index"
        return func(*args, **(kwargs or {}))


def found(batch, shift, labels="labels"):
    """Return the batch as a collator of that batch with its targets' places makes it."""
    return token_loss.FindTargets(lambda rows: dict(batch), shift=shift, labels=labels)([])


def test_the_collator_finds_where_the_targets_are():
    labels = torch.tensor([[-100, 5, 6], [-100, -100, 7]])
    assert found({"labels": labels}, True)["target_places"].tolist() == [[0, 0, 1], [0, 1, 1]]
    assert found({"labels": labels}, False)["target_places"].tolist() == [[0, 0, 1], [1, 2, 2]]
    assert found({"input_ids": labels}, True).keys() == {"input_ids"}


@pytest.mark.parametrize(("kind", "name"), [("decoder", "llama_tied"), ("decoder", "gemma2"), ("pair", "t5")])
def test_a_step_asks_nothing_of_the_device(kind, name, small_chunks):
    model, batch, shift = model_of(kind, name), batch_of(kind), kind == "decoder"
    if kind == "pair":
        del batch["attention_mask"]  # transformers looks into it
        batch["decoder_input_ids"] = token_loss._shifted(model, batch["labels"])  # and T5 into its labels
    expected = lean(model, batch, 0.1, shift)  # the first pass compares the head's logits with the model's
    known = found(batch, shift)
    with Unasked():
        loss, grads = lean(model, known, 0.1, shift)
    assert torch.equal(loss, expected[0])
    assert all(torch.equal(grads[name], value) for name, value in expected[1].items())
    with pytest.raises(AssertionError, match="nonzero"), Unasked():
        lean(model, batch, 0.1, shift)


def test_log_probabilities_ask_nothing_of_the_device(small_chunks):
    model, batch = model_of("decoder", "llama"), batch_of("decoder")
    labels = batch.pop("labels")
    expected = token_loss.token_log_probs(model, batch, labels)
    known = found({**batch, "targets": labels}, True, "targets")
    del known["targets"]
    with Unasked():
        log_probs = token_loss.token_log_probs(model, known, labels)
    assert torch.equal(log_probs, expected)


def test_a_model_that_computes_its_loss_itself_is_not_given_the_places():
    model, batch = model_of("encoder", "mobilebert"), batch_of("encoder")
    assert torch.equal(lean(model, found(batch, False))[0], lean(model, batch)[0])
