"""What a checkpoint needs of a machine, in bytes and tokens. Knows its files; loads no weight."""

from dataclasses import dataclass
from pathlib import Path

from kimi_serve.errors import CheckpointError
from kimi_serve.inputs.config import Checkpoint, load_checkpoint

BUNDLED = Path(__file__).resolve().parent.parent / "assets" / "kimi-vl-nano"


@dataclass(frozen=True, slots=True)
class Footprint:
    weights: int  # bytes, as stored
    latent_per_token: int  # bytes of bfloat16 cache in all layers, where MLA kernels run
    expanded_per_token: int  # bytes where they do not: keys and values of every head
    max_positions: int
    max_image_tokens: int  # the largest image the checkpoint accepts


def read(directory: Path) -> Footprint:
    checkpoint = load_checkpoint(directory)
    weights = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    if not weights:
        raise CheckpointError(f"{directory}: holds no *.safetensors file")
    return of(checkpoint, weights)


def of(checkpoint: Checkpoint, weights: int) -> Footprint:
    """What a configuration needs, with weights of so many bytes."""
    text = checkpoint.model.text
    return Footprint(
        weights=weights,
        latent_per_token=2 * text.num_hidden_layers * (text.kv_lora_rank + text.qk_rope_head_dim),
        expanded_per_token=2 * text.num_hidden_layers * 2 * text.num_attention_heads * text.qk_head_dim,
        max_positions=text.max_position_embeddings,
        max_image_tokens=checkpoint.image.geometry.max_tokens(),
    )
