from lit_hf.models.module_names import closest, patterns

LLAMA = [
    f"model.layers.{layer}.{part}"
    for layer in range(32)
    for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.up_proj")
] + ["lm_head"]


def test_layers_fold_into_one_pattern():
    assert patterns(LLAMA) == [
        "model.layers.{0..31}.self_attn.q_proj",
        "model.layers.{0..31}.self_attn.k_proj",
        "model.layers.{0..31}.mlp.gate_proj",
        "model.layers.{0..31}.mlp.up_proj",
        "lm_head",
    ]


def test_gaps_and_single_numbers_are_not_ranges():
    assert patterns(["m.0.e.1", "m.0.e.3", "m.1.e.1", "w.5"]) == ["m.{0..1}.e.{1,3}", "w.5"]


def test_the_nearest_pattern_comes_first():
    for wanted in ("qproj", "q_prj", r".*\.q_project"):
        assert closest(wanted, LLAMA).startswith("The nearest that exist: model.layers.{0..31}.self_attn.q_proj, ")


def test_a_model_of_many_kinds_of_modules_is_not_listed_whole():
    told = closest("x", [f"part{letter}.weight" for letter in "abcdefghijklmnopqrst"])
    assert told.endswith(" and 8 more patterns.")
