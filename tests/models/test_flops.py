import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from lit_hf.models.flops import attended_pairs, flop_costs, training_flops

ROWS, LENGTH = 2, 32
SHAPE = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}


def llama(**values):
    config = {**SHAPE, "num_key_value_heads": 2, "intermediate_size": 96, "attn_implementation": "eager", **values}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **config))


def counted(model, **inputs):
    ids = torch.ones(ROWS, LENGTH, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, **inputs).loss.backward()
    return counter.get_total_flops()


def formula(model, **sizes):
    # the implementations compute all pairs, and mask those that are not attended
    return training_flops(model, ROWS * LENGTH, attended_pairs([LENGTH] * ROWS, causal=False), **sizes)


def test_a_decoder_costs_what_torch_counts():
    # torch counts besides, of what is not the model's matrices, only the rotary positions
    assert formula(llama()) == pytest.approx(counted(llama()), rel=0.005)


def test_an_encoder_costs_what_torch_counts():
    config = AutoConfig.for_model("bert", **SHAPE, intermediate_size=96, attn_implementation="eager")
    model = AutoModelForMaskedLM.from_config(config)
    transform = 6 * ROWS * LENGTH * 64 * 64  # the head's own layer, which no stack holds
    assert formula(model) + transform == pytest.approx(counted(model), rel=0.01)


def test_lora_spares_the_gradients_of_frozen_weights():
    model = get_peft_model(llama(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert formula(model) == pytest.approx(counted(model), rel=0.03)
    assert formula(model) < 0.8 * formula(llama())


def test_below_the_first_trained_weight_there_are_no_gradients():
    model = llama()
    model.requires_grad_(False)
    model.model.layers[2].requires_grad_(True)
    model.lm_head.requires_grad_(True)
    layers = sum(module.weight.numel() for module in model.model.layers[0].modules() if hasattr(module, "in_features"))
    head = model.lm_head.weight.numel()
    pairs = attended_pairs([LENGTH] * ROWS, causal=False) * flop_costs(model).per_pair
    first = 64 * 64  # q_proj trains, and nothing before it does
    per_token = 2 * 2 * layers + 6 * layers - 2 * first + 6 * head
    assert formula(model) == pytest.approx(ROWS * LENGTH * per_token + pairs)


def test_an_output_head_is_paid_only_where_there_is_a_target():
    model = llama()
    spared = formula(model) - formula(model, trained_tokens=10)
    assert spared == 6 * model.lm_head.weight.numel() * (ROWS * LENGTH - 10)


def test_each_token_goes_through_its_few_experts():
    values = {"moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2, "decoder_sparse_step": 1}
    config = AutoConfig.for_model("qwen3_moe", **SHAPE, num_key_value_heads=4, head_dim=16, **values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    attention, router, expert = 4 * 64 * 64, 64 * 8, 3 * 64 * 32
    weights = 3 * (attention + router + 2 * expert)
    assert flop_costs(model).per_token == pytest.approx(6 * weights, rel=0.02)


def test_shared_layers_are_run_again():
    config = AutoConfig.for_model(
        "albert", **{**SHAPE, "num_hidden_layers": 6}, embedding_size=16, intermediate_size=96
    )
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(config)
    layer = 4 * 64 * 64 + 2 * 64 * 96
    assert flop_costs(model).per_token == 6 * 6 * layer


def test_an_encoder_decoder_pays_for_both_sides():
    config = AutoConfig.for_model(
        "t5", d_model=64, d_kv=16, d_ff=96, num_layers=2, num_decoder_layers=3, num_heads=4, vocab_size=100
    )
    with torch.device("meta"):
        costs = flop_costs(AutoModelForSeq2SeqLM.from_config(config))
    attention, feed_forward = 4 * 64 * 64, 2 * 64 * 96
    assert costs.per_token == pytest.approx(6 * 2 * (attention + feed_forward), rel=0.02)
    assert costs.per_decoder_token == pytest.approx(6 * 3 * (2 * attention + feed_forward), rel=0.001)
    assert costs.step(10, 0, decoder_tokens=5) == pytest.approx(
        10 * costs.per_token + 5 * costs.per_decoder_token + 5 * 6 * 64 * 100
    )


def test_pairs_of_tokens():
    assert attended_pairs([3, 1], causal=True) == 6 + 1
    assert attended_pairs([3, 1], causal=False) == 9 + 1
