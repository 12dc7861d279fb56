"""Language models of every kind, each of a few thousand weights, and batches for them."""

import functools

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

WORDS = 101

SMALL = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
NO_DROPOUT = {"attention_dropout": 0.0, "hidden_dropout": 0.0}
PAIR = {
    "vocab_size": WORDS,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}
T5 = {"vocab_size": WORDS, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
BERT = SMALL | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}

DECODERS = {
    "llama": SMALL | GROUPED,
    "llama_tied": SMALL | GROUPED | {"tie_word_embeddings": True},
    "mistral": SMALL | GROUPED | {"sliding_window": 4},
    "qwen2": SMALL | GROUPED,
    "qwen3": SMALL | GROUPED | {"tie_word_embeddings": True},
    "gemma": SMALL | GROUPED,
    "gemma2": SMALL | GROUPED | {"final_logit_softcapping": 0.5, "sliding_window": 4},
    "gemma3_text": SMALL | GROUPED | {"final_logit_softcapping": 0.5, "sliding_window": 4},
    "cohere": SMALL | GROUPED | {"logit_scale": 0.25},
    "granite": SMALL | GROUPED | {"logits_scaling": 8.0},
    "granitemoe": SMALL | GROUPED | EXPERTS | {"logits_scaling": 8.0},
    "mixtral": SMALL | GROUPED | EXPERTS,
    "mixtral_balanced": SMALL | GROUPED | EXPERTS | {"output_router_logits": True},
    "qwen3_moe": SMALL | GROUPED | EXPERTS | {"output_router_logits": True},
    "olmo2": SMALL | GROUPED,
    "olmoe": SMALL | GROUPED | EXPERTS | {"output_router_logits": True},
    "phi": SMALL | {"resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "phi3": SMALL | GROUPED | {"resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "stablelm": SMALL | GROUPED,
    "smollm3": SMALL | GROUPED,
    "glm": SMALL | GROUPED,
    "falcon": SMALL | NO_DROPOUT | {"alibi": True},
    "bloom": SMALL | NO_DROPOUT,
    "gpt_neox": SMALL | NO_DROPOUT,
    "gpt_neo": SMALL | {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "embed_dropout": 0.0,
                        "resid_dropout": 0.0, "window_size": 4},
    "gptj": {"vocab_size": WORDS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "rotary_dim": 4,
             "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gpt2": {"vocab_size": WORDS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32,
             "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "opt": SMALL | {"ffn_dim": 24, "word_embed_proj_dim": 8, "dropout": 0.0},
    "mpt": {"vocab_size": WORDS, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 32},
    "mamba": {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "falcon_h1": SMALL | GROUPED | {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 8,
                                    "lm_head_multiplier": 0.5},
    "bert_decoder": BERT | {"is_decoder": True},
}  # fmt: skip

PAIRS = {
    "t5": T5 | {"decoder_start_token_id": 0, "pad_token_id": 0},
    "t5_gated": T5 | {"decoder_start_token_id": 0, "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
    "bart": PAIR,
    "mbart": PAIR,
    "marian": PAIR | {"decoder_vocab_size": WORDS, "decoder_start_token_id": 0},
    "pegasus": PAIR | {"decoder_start_token_id": 0},
    "m2m_100": PAIR,
    "switch_transformers": T5 | {"decoder_start_token_id": 0, "num_sparse_encoder_layers": 1, "num_experts": 2,
                                 "num_sparse_decoder_layers": 1, "num_decoder_layers": 1, "router_jitter_noise": 0.0},
}  # fmt: skip

ENCODERS = {
    "bert": BERT,
    "roberta": BERT | {"max_position_embeddings": 40},
    "xlm-roberta": BERT | {"max_position_embeddings": 40},
    "distilbert": {"vocab_size": WORDS, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "dropout": 0.0,
                   "attention_dropout": 0.0, "max_position_embeddings": 32, "pad_token_id": 0},
    "electra": BERT | {"embedding_size": 8},
    "albert": BERT | {"embedding_size": 8},
    "mpnet": BERT | {"max_position_embeddings": 40},
    "deberta-v2": BERT,
    "modernbert": SMALL | {"local_attention": 4, "reference_compile": False},
    "mobilebert": BERT | {"embedding_size": 8, "intra_bottleneck_size": 8, "true_hidden_size": 8},
}  # fmt: skip

AUTO = {"decoder": AutoModelForCausalLM, "pair": AutoModelForSeq2SeqLM, "encoder": AutoModelForMaskedLM}
ARCHITECTURES = [
    *(("decoder", name, config) for name, config in DECODERS.items()),
    *(("pair", name, config) for name, config in PAIRS.items()),
    *(("encoder", name, config) for name, config in ENCODERS.items()),
]
PLAIN = {"mobilebert"}
"""Models that compute all of their logits, because they have no plain output head."""


@functools.cache
def made(kind, name):
    values = next(config for _, other, config in ARCHITECTURES if other == name)
    model_type = name.removesuffix("_tied").removesuffix("_balanced").removesuffix("_gated").removesuffix("_decoder")
    torch.manual_seed(0)
    return AUTO[kind].from_config(AutoConfig.for_model(model_type, **values))


def model_of(kind, name):
    model = made(kind, name).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    model.zero_grad()
    return model


def batch_of(kind, rows=3, tokens=12):
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, WORDS, (rows, tokens), generator=generator)
    lengths = torch.tensor([tokens, tokens - 5, tokens - 2])[:rows]
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    labels = ids.masked_fill(mask == 0, -100)
    if kind == "decoder":
        labels = labels.masked_fill(torch.arange(tokens) < 4, -100)
    elif kind == "encoder":
        labels = labels.masked_fill(torch.rand(ids.shape, generator=generator) < 0.7, -100)
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask, "labels": labels}
