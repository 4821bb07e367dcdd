"""The checkpoint's configuration files as checked values. Knows json and names; never a tensor or an image.

What a file states holds. A key whose published value equals the default of the checkpoint's own class may be absent;
every other key must be there. A value that the model does not support is refused with its key, value and what is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, cast

from kimi_serve.errors import ConfigError
from kimi_serve.inputs.fields import Fields
from kimi_serve.inputs.geometry import Geometry

MODEL_TYPE = "kimi_vl"
ARCHITECTURE = "KimiVLForConditionalGeneration"

# The processor class defaults to CLIP's statistics; the published files state 0.5.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Dtype = Literal["bfloat16", "float16", "float32"]
TopkMethod = Literal["noaux_tc", "greedy"]


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The decoder: multi-head latent attention and a mixture of experts."""

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rope_theta: float
    rms_norm_eps: float
    intermediate_size: int
    first_k_dense_replace: int
    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    routed_scaling_factor: float
    norm_topk_prob: bool
    topk_method: TopkMethod
    scoring_func: Literal["sigmoid"]
    n_group: Literal[1]
    topk_group: Literal[1]
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        _refuse_unsupported_text(fields)
        heads = fields.integer("num_attention_heads", at_least=1)
        fields.only("num_key_value_heads", heads, absent=heads)
        experts = fields.integer("n_routed_experts", at_least=1)
        vocab = fields.integer("vocab_size", at_least=1)
        return cls(
            vocab_size=vocab,
            max_position_embeddings=fields.integer("max_position_embeddings", at_least=1),
            hidden_size=fields.integer("hidden_size", at_least=1),
            num_hidden_layers=fields.integer("num_hidden_layers", at_least=1),
            num_attention_heads=heads,
            kv_lora_rank=fields.integer("kv_lora_rank", at_least=1, absent=512),
            qk_nope_head_dim=fields.integer("qk_nope_head_dim", at_least=1, absent=128),
            qk_rope_head_dim=fields.integer("qk_rope_head_dim", at_least=2, absent=64, multiple_of=2),
            v_head_dim=fields.integer("v_head_dim", at_least=1, absent=128),
            rope_theta=_rope_theta(fields),
            rms_norm_eps=fields.positive("rms_norm_eps"),
            intermediate_size=fields.integer("intermediate_size", at_least=1),
            first_k_dense_replace=fields.integer("first_k_dense_replace", at_least=0),
            moe_intermediate_size=fields.integer("moe_intermediate_size", at_least=1),
            n_routed_experts=experts,
            n_shared_experts=fields.integer("n_shared_experts", at_least=1),
            num_experts_per_tok=fields.integer("num_experts_per_tok", at_least=1, at_most=experts),
            routed_scaling_factor=fields.positive("routed_scaling_factor"),
            norm_topk_prob=fields.boolean("norm_topk_prob", absent=True),
            topk_method=cast(TopkMethod, fields.one_of("topk_method", ("noaux_tc", "greedy"), absent="noaux_tc")),
            scoring_func="sigmoid",
            n_group=1,
            topk_group=1,
            bos_token_id=fields.optional_integer("bos_token_id", at_most=vocab - 1),
            eos_token_id=fields.optional_integer("eos_token_id", at_most=vocab - 1),
            pad_token_id=fields.optional_integer("pad_token_id", at_most=vocab - 1),
        )

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer is a mixture of experts."""
        return layer >= self.first_k_dense_replace


def _refuse_unsupported_text(fields: Fields) -> None:
    fields.only("q_lora_rank", None)
    fields.only("hidden_act", "silu", absent="silu")
    fields.only("attention_bias", False, absent=False)
    fields.only("scoring_func", "sigmoid", absent="sigmoid")
    fields.only("moe_layer_freq", 1, absent=1)
    fields.only("n_group", 1)
    fields.only("topk_group", 1)
    fields.only("tie_word_embeddings", False, absent=False)


def _rope_theta(fields: Fields) -> float:
    """Take the base from rope_theta, or from Transformers 5's rope_parameters; no scaling is supported."""
    for key in ("rope_scaling", "rope_parameters"):
        if not fields.has(key) or fields.value(key) is None:
            continue
        rope = fields.section(key)
        kind = rope.value("rope_type") if rope.has("rope_type") else rope.value("type")
        if kind != "default":
            raise ConfigError(f"{fields.name}.{key}: type {kind!r} is not supported; supported: null or 'default'")
        if not fields.has("rope_theta"):
            return rope.positive("rope_theta")
    return fields.positive("rope_theta")


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The vision tower (MoonViT)."""

    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    init_pos_emb_height: int
    init_pos_emb_width: int
    merge_kernel_size: tuple[int, int]  # patches down and across that one token is made of

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        fields.only("model_type", "moonvit", absent="moonvit")
        heads = fields.integer("num_attention_heads", at_least=1, absent=16)
        return cls(
            patch_size=fields.integer("patch_size", at_least=1, absent=14),
            # 2-D rotary embedding turns pairs of pairs: each head needs a multiple of four.
            hidden_size=fields.integer("hidden_size", at_least=1, absent=1152, multiple_of=4 * heads),
            intermediate_size=fields.integer("intermediate_size", at_least=1, absent=4304),
            num_hidden_layers=fields.integer("num_hidden_layers", at_least=1, absent=27),
            num_attention_heads=heads,
            init_pos_emb_height=fields.integer("init_pos_emb_height", at_least=1, absent=64),
            init_pos_emb_width=fields.integer("init_pos_emb_width", at_least=1, absent=64),
            merge_kernel_size=fields.pair("merge_kernel_size", absent=(2, 2)),
        )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """config.json."""

    text: TextConfig
    vision: VisionConfig
    media_placeholder_token_id: int
    dtype: Dtype
    quantization: Mapping[str, object] | None  # as the file states it; the engine judges it


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """preprocessor_config.json."""

    geometry: Geometry
    image_mean: tuple[float, float, float]  # of values in 0..1, red green blue
    image_std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """generation_config.json. None: the file does not say."""

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The configuration files of one checkpoint, checked against each other."""

    model: ModelConfig
    image: ImageConfig
    generation: GenerationConfig


def load_checkpoint(directory: Path) -> Checkpoint:
    """Read a checkpoint folder; generation_config.json may be missing."""
    model = parse_model_config(_read_json(directory / "config.json"))
    image = parse_image_config(_read_json(directory / "preprocessor_config.json"))
    generation_file = directory / "generation_config.json"
    generation = parse_generation_config(_read_json(generation_file) if generation_file.exists() else {})
    _check_agreement(model.vision, image.geometry)
    return Checkpoint(model, image, generation)


def parse_model_config(raw: Mapping[str, object]) -> ModelConfig:
    fields = Fields("config.json", raw)
    fields.only("model_type", MODEL_TYPE)
    fields.only("tie_word_embeddings", False, absent=False)
    if fields.has("architectures") and fields.value("architectures") not in ([ARCHITECTURE], None):
        raise ConfigError(
            f"config.json.architectures: {fields.value('architectures')!r}; supported: ['{ARCHITECTURE}']"
        )
    text_fields = fields.section("text_config")
    text = TextConfig.parse(text_fields)
    fields.only("vocab_size", text.vocab_size, absent=text.vocab_size)
    quantization = fields.section("quantization_config").raw if fields.stated("quantization_config") else None
    return ModelConfig(
        text=text,
        vision=VisionConfig.parse(fields.section("vision_config")),
        media_placeholder_token_id=fields.integer(
            "media_placeholder_token_id", at_least=0, at_most=text.vocab_size - 1, absent=163605
        ),
        dtype=_dtype(fields, text_fields),
        quantization=quantization,
    )


def parse_image_config(raw: Mapping[str, object]) -> ImageConfig:
    fields = Fields("preprocessor_config.json", raw)
    std = fields.three_numbers("image_std", absent=CLIP_STD)
    if min(std) <= 0:
        raise ConfigError(f"preprocessor_config.json.image_std: {list(std)} is not supported; use numbers above 0")
    return ImageConfig(
        geometry=Geometry.from_preprocessor_config(raw),
        image_mean=fields.three_numbers("image_mean", absent=CLIP_MEAN),
        image_std=std,
    )


def parse_generation_config(raw: Mapping[str, object]) -> GenerationConfig:
    fields = Fields("generation_config.json", raw)
    return GenerationConfig(
        eos_token_ids=fields.integers("eos_token_id"),
        bos_token_id=fields.optional_integer("bos_token_id"),
        pad_token_id=fields.optional_integer("pad_token_id"),
        do_sample=fields.boolean("do_sample") if fields.stated("do_sample") else None,
        temperature=fields.optional_number("temperature", at_least=0),
        top_p=fields.optional_number("top_p", at_least=0, at_most=1),
        top_k=fields.optional_integer("top_k"),
        repetition_penalty=fields.optional_number("repetition_penalty", at_least=0),
        max_new_tokens=fields.optional_integer("max_new_tokens"),
    )


def _dtype(fields: Fields, text_fields: Fields) -> Dtype:
    """Return the stored dtype: `dtype` since Transformers 5, `torch_dtype` before, at the top or in text_config."""
    for source in (fields, text_fields):
        for key in ("dtype", "torch_dtype"):
            if source.stated(key):
                return cast(Dtype, source.one_of(key, ("bfloat16", "float16", "float32")))
    return "bfloat16"


def _check_agreement(vision: VisionConfig, geometry: Geometry) -> None:
    for name, tower, images in (
        ("patch_size", vision.patch_size, geometry.patch_size),
        (
            "merge_kernel_size",
            vision.merge_kernel_size,
            (geometry.merge_height, geometry.merge_width),
        ),
    ):
        if tower != images:
            raise ConfigError(f"{name}: {images} in preprocessor_config.json, but {tower} in config.json.vision_config")


def _read_json(path: Path) -> Mapping[str, object]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: is missing; a checkpoint folder needs it") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds a {type(raw).__name__}; expected an object")
    return raw
