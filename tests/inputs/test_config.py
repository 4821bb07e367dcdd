"""Configuration files: what is read, what has a default, what is refused."""

import json
from copy import deepcopy

import pytest

from kimi_serve.errors import ConfigError
from kimi_serve.inputs.config import (
    CLIP_MEAN,
    CLIP_STD,
    GenerationConfig,
    load_checkpoint,
    parse_generation_config,
    parse_image_config,
    parse_model_config,
)


@pytest.fixture
def raw(checkpoint_dir):
    return json.loads((checkpoint_dir / "config.json").read_text(encoding="utf-8"))


@pytest.fixture
def copied(checkpoint_dir, tmp_path):
    for file in checkpoint_dir.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_golden_checkpoint_is_read_whole(checkpoint_dir):
    checkpoint = load_checkpoint(checkpoint_dir)
    assert (checkpoint.model.text.num_hidden_layers, checkpoint.model.text.qk_head_dim) == (4, 192)
    assert (checkpoint.model.vision.head_dim, checkpoint.model.vision.merge_kernel_size) == (72, (2, 2))
    assert (checkpoint.model.media_placeholder_token_id, checkpoint.model.dtype) == (1045, "bfloat16")
    assert checkpoint.image.geometry.in_token_limit == 256
    assert checkpoint.generation.eos_token_ids == (1025, 1026)


def test_first_layers_are_dense_and_the_rest_are_experts(raw):
    text = parse_model_config(raw).text
    assert [text.is_sparse(layer) for layer in range(4)] == [False, True, True, True]


def test_published_vision_values_are_the_defaults(raw):
    raw["vision_config"] = {}
    vision = parse_model_config(raw).vision
    assert (vision.hidden_size, vision.num_hidden_layers, vision.patch_size) == (1152, 27, 14)


@pytest.mark.parametrize("key", ["hidden_size", "q_lora_rank", "rope_theta", "rms_norm_eps", "n_routed_experts"])
def test_key_that_shapes_the_network_must_be_there(raw, key):
    del raw["text_config"][key]
    with pytest.raises(ConfigError, match=rf"config\.json\.text_config\.{key}: is missing"):
        parse_model_config(raw)


@pytest.mark.parametrize("key", ["kv_lora_rank", "topk_method", "scoring_func", "num_key_value_heads", "hidden_act"])
def test_key_whose_class_default_is_the_published_value_may_be_absent(raw, key):
    expected = parse_model_config(raw)
    del raw["text_config"][key]
    assert parse_model_config(raw) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("q_lora_rank", 1536),
        ("scoring_func", "softmax"),
        ("topk_method", "group_limited_greedy"),
        ("n_group", 8),
        ("topk_group", 4),
        ("moe_layer_freq", 2),
        ("moe_layer_freq", True),
        ("attention_bias", True),
        ("attention_bias", 0),
        ("num_key_value_heads", 1),
        ("num_experts_per_tok", 9),
        ("qk_rope_head_dim", 63),
        ("hidden_size", "256"),
        ("hidden_size", 0),
        ("norm_topk_prob", 1),
        ("rms_norm_eps", 0.0),
        ("rope_theta", float("nan")),
        ("tie_word_embeddings", True),
        ("eos_token_id", 1280),
    ],
)
def test_unsupported_text_value_is_refused_with_key_and_value(raw, key, value):
    raw["text_config"][key] = value
    with pytest.raises(ConfigError, match=rf"^config\.json\.text_config\.{key}: .*not supported; (supported|expected)"):
        parse_model_config(raw)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "kimi_k25"),
        ("architectures", ["LlamaForCausalLM"]),
        ("media_placeholder_token_id", 1280),
        ("vocab_size", 1281),
        ("torch_dtype", "float8"),
        ("text_config", None),
    ],
)
def test_unsupported_top_level_value_is_refused_with_its_key(raw, key, value):
    raw[key] = value
    with pytest.raises(ConfigError, match=rf"^config\.json\.{key}: "):
        parse_model_config(raw)


def test_vision_heads_must_fit_the_rotary_embedding(raw):
    raw["vision_config"]["hidden_size"] = 140
    with pytest.raises(ConfigError, match=r"vision_config\.hidden_size: 140 .* multiple of 8"):
        parse_model_config(raw)


def test_scaled_rope_is_refused(raw):
    raw["text_config"]["rope_scaling"] = {"type": "yarn", "factor": 4}
    with pytest.raises(ConfigError, match="rope_scaling: type 'yarn' is not supported; supported: null or 'default'"):
        parse_model_config(raw)


def test_rope_parameters_of_newer_transformers_are_read(raw):
    expected = parse_model_config(raw)
    text = raw["text_config"]
    text["rope_parameters"] = {"rope_theta": text.pop("rope_theta"), "rope_type": "default"}
    del text["rope_scaling"]
    assert parse_model_config(raw) == expected


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtype_is_read_under_either_name(raw, key):
    del raw["torch_dtype"]
    raw[key] = "float32"
    assert parse_model_config(raw).dtype == "float32"


def test_quantization_is_handed_on_as_stated(raw):
    raw["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    assert parse_model_config(raw).quantization == {"quant_method": "gptq", "bits": 4}


def test_parsing_leaves_the_file_as_it_was(raw):
    before = deepcopy(raw)
    parse_model_config(raw)
    assert raw == before


def test_absent_image_statistics_are_those_of_the_published_class():
    config = parse_image_config({"pad_input": True})
    assert (config.image_mean, config.image_std) == (CLIP_MEAN, CLIP_STD)


@pytest.mark.parametrize(
    ("key", "value"), [("image_std", [0.5, 0.0, 0.5]), ("image_mean", [0.5]), ("image_mean", "x"), ("patch_size", 0.5)]
)
def test_senseless_image_setting_is_refused_with_its_key(key, value):
    with pytest.raises(ConfigError, match=rf"preprocessor_config\.json\.{key}"):
        parse_image_config({"pad_input": True, key: value})


@pytest.mark.parametrize(("stated", "read"), [(7, (7,)), ([7, 8], (7, 8)), (None, ())])
def test_eos_is_one_id_or_a_list(stated, read):
    assert parse_generation_config({"eos_token_id": stated}).eos_token_ids == read


@pytest.mark.parametrize(
    ("key", "value"), [("temperature", -1), ("top_p", 1.5), ("eos_token_id", "x"), ("do_sample", 1)]
)
def test_senseless_generation_setting_is_refused_with_its_key(key, value):
    with pytest.raises(ConfigError, match=rf"generation_config\.json\.{key}"):
        parse_generation_config({key: value})


def test_generation_config_may_be_missing(copied):
    (copied / "generation_config.json").unlink()
    assert load_checkpoint(copied).generation == GenerationConfig()


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_missing_file_is_named(copied, name):
    (copied / name).unlink()
    with pytest.raises(ConfigError, match=rf"{name}: is missing"):
        load_checkpoint(copied)


@pytest.mark.parametrize("text", ["{", "[]", "\x80"])
def test_malformed_file_is_named(copied, text):
    (copied / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"config\.json: (cannot be read as JSON|holds a list)"):
        load_checkpoint(copied)


def test_tower_and_processor_must_agree(copied):
    settings = json.loads((copied / "preprocessor_config.json").read_text(encoding="utf-8"))
    (copied / "preprocessor_config.json").write_text(json.dumps(settings | {"patch_size": 16}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"patch_size: 16 in preprocessor_config\.json, but 14"):
        load_checkpoint(copied)
