"""What is planned: a checkpoint's configuration, its tensors and its template. Knows files; never a machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kimi_serve.errors import PlanError
from kimi_serve.inputs import chat
from kimi_serve.inputs.config import Checkpoint, GenerationConfig, load_checkpoint, parse_image_config
from kimi_serve.inputs.config import parse_model_config as parse_model
from kimi_serve.inputs.headers import Stored, read_header, weight_files
from kimi_serve.inputs.tensors import expected_tensors
from kimi_serve.inputs.tokenizer import Tokenizer
from kimi_serve.inputs.variants import IN_TOKEN_LIMIT_2506
from kimi_serve.launch.footprint import BUNDLED
from kimi_serve.plan.options import Options, Preset
from kimi_serve.quantize.layout import check_complete

# The published config.json, less what no shape depends on. Of Thinking and Thinking-2506 only the image limit is known
# to differ.
_PUBLISHED: dict[str, object] = {
    "model_type": "kimi_vl",
    "torch_dtype": "bfloat16",
    "media_placeholder_token_id": 163605,
    "text_config": {
        "vocab_size": 163840,
        "max_position_embeddings": 131072,
        "hidden_size": 2048,
        "intermediate_size": 11264,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "n_shared_experts": 2,
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.446,
        "q_lora_rank": None,
        "n_group": 1,
        "topk_group": 1,
        "rms_norm_eps": 1e-05,
        "rope_theta": 800000.0,
        "bos_token_id": 163584,
        "eos_token_id": 163585,
        "pad_token_id": 163839,
    },
    "vision_config": {},  # every published value is the class's default
}
_IN_TOKEN_LIMITS: dict[Preset, int] = {"instruct": 4096, "thinking": 4096, "thinking-2506": IN_TOKEN_LIMIT_2506}


@dataclass(frozen=True, slots=True)
class Template:
    """Tokens that a conversation of one message costs beside what it says."""

    turns: int  # the system's default, the user's, and the assistant's beginning
    image: int  # around one image's own tokens


# With the published tokenizer "You are a helpful assistant" has five tokens, and "image" has one.
PUBLISHED_TEMPLATE = Template(turns=16, image=4)


@dataclass(frozen=True, slots=True)
class Subject:
    name: str
    checkpoint: Checkpoint
    template: Template
    tensors: tuple[Stored, ...]  # as stored; as a checkpoint in bfloat16 would store them, where there are no files
    files: int | None  # bytes of the weights' files; None: there are none

    @property
    def is_quantized(self) -> bool:
        return self.checkpoint.model.quantization is not None


def choose(options: Options) -> Subject:
    if options.preset is not None:
        return published(options.preset)
    return from_directory(options.model or BUNDLED)


def published(preset: Preset) -> Subject:
    model = parse_model(_PUBLISHED)
    image = parse_image_config({"in_token_limit": _IN_TOKEN_LIMITS[preset], "pad_input": True})
    checkpoint = Checkpoint(model, image, GenerationConfig())
    return Subject(preset, checkpoint, PUBLISHED_TEMPLATE, in_bfloat16(checkpoint), None)


def from_directory(directory: Path) -> Subject:
    """A checkpoint's folder; one that holds no weights is planned as if they were in bfloat16."""
    if not directory.is_dir():
        raise PlanError(f"MODEL: {directory} is not a directory")
    checkpoint = load_checkpoint(directory)
    template = template_of(Tokenizer.from_directory(directory))
    name = directory.resolve().name
    if any(directory.glob("*.safetensors")):
        files = weight_files(directory)
        tensors = tuple(tensor for file in files for tensor in read_header(directory / file))
        size = sum((directory / file).stat().st_size for file in files)
        if checkpoint.model.quantization is None:
            check_complete({tensor.name: tensor for tensor in tensors}, expected_tensors(checkpoint.model))
        return Subject(name, checkpoint, template, tensors, size)
    if checkpoint.model.quantization is not None:
        raise PlanError(f"MODEL: {directory} is quantized and holds no weights; only its files say how large it is")
    return Subject(name, checkpoint, template, in_bfloat16(checkpoint), None)


def in_bfloat16(checkpoint: Checkpoint) -> tuple[Stored, ...]:
    shapes = expected_tensors(checkpoint.model)
    return tuple(Stored(name, "BF16", shape, "", 0) for name, shape in shapes.items())


def template_of(tokenizer: Tokenizer) -> Template:
    """Counted, not known: other vocabularies cut the template's words differently."""
    empty = _length([{"type": "text", "text": ""}], tokenizer)
    pictured = _length([{"type": "image"}], tokenizer)
    return Template(turns=empty, image=pictured - empty - 1)


def _length(content: Sequence[object], tokenizer: Tokenizer) -> int:
    return len(chat.render([{"role": "user", "content": content}], tokenizer))
