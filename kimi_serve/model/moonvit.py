"""MoonViT: packed uint8 patches of many images -> features at native resolution. Knows no text and no file format."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from vllm.model_executor.layers.attention.mm_encoder_attention import MMEncoderAttention
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.models.vision import is_vit_use_data_parallel

from kimi_serve.inputs.config import ImageConfig, VisionConfig
from kimi_serve.inputs.geometry import Grid

LAYER_NORM_EPS = 1e-5  # PyTorch's default, which the published tower uses without naming it
ROPE_THETA = 10000.0  # a constant of the published tower: no checkpoint file states it
POSITION_CACHE_PATCHES = 16_384  # kept stretched tables: 75 MB at the published width, enough for many small images


class PatchEmbedding(nn.Module):
    """(N, 3, p, p) uint8 -> (N, hidden) float32, normalisation included.

    The published order is u/255, subtract the mean, divide by the deviation, convolve. A convolution is linear, so the
    first three fold into its weight and bias; pixels then travel as bytes until here. Runs in float32.
    """

    def __init__(self, vision: VisionConfig, image: ImageConfig) -> None:
        super().__init__()
        patch = vision.patch_size
        self.proj = nn.Conv2d(3, vision.hidden_size, kernel_size=patch, stride=patch)
        self.pos_emb = PositionTable(vision)
        # Not buffers: a float32 constant must survive the model's default dtype and `to(dtype)`.
        self._std = image.image_std
        self._mean = image.image_mean

    def forward(self, patches: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        weight = self.proj.weight.float().flatten(1)  # (hidden, 3*p*p)
        scale, shift = self._affine(weight)
        bias = self.proj.bias.float() + weight @ shift
        x = F.linear(patches.flatten(1).float(), weight * scale, bias)  # (N, hidden)
        return x + self.pos_emb(grids)

    def _affine(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        per_channel = weight.shape[1] // 3
        std = torch.tensor(self._std, device=weight.device, dtype=torch.float32).repeat_interleave(per_channel)
        mean = torch.tensor(self._mean, device=weight.device, dtype=torch.float32).repeat_interleave(per_channel)
        return 1 / (255 * std), -mean / std


class PositionTable(nn.Module):
    """The learned (h0, w0, hidden) table, stretched bicubically to each image's grid."""

    def __init__(self, vision: VisionConfig) -> None:
        super().__init__()
        shape = (vision.init_pos_emb_height, vision.init_pos_emb_width, vision.hidden_size)
        self.weight = nn.Parameter(torch.empty(shape))
        self._stretched: dict[Grid, torch.Tensor] = {}

    def forward(self, grids: Sequence[Grid]) -> torch.Tensor:
        return torch.cat([self._for_grid(grid) for grid in grids])  # (sum(h*w), hidden) float32

    def _for_grid(self, grid: Grid) -> torch.Tensor:
        if grid in self._stretched:
            return self._stretched[grid]
        stretched = self._stretch(grid)
        self._stretched[grid] = stretched
        while sum(kept.num_patches for kept in self._stretched) > POSITION_CACHE_PATCHES:
            self._stretched.pop(next(iter(self._stretched)))  # the oldest, or this one where it alone is too large
        return stretched

    def _stretch(self, grid: Grid) -> torch.Tensor:
        table = self.weight.float()
        if (grid.height, grid.width) == tuple(table.shape[:2]):
            return table.flatten(0, 1)
        planes = table.permute(2, 0, 1).unsqueeze(0)  # (1, hidden, h0, w0)
        planes = F.interpolate(planes, size=(grid.height, grid.width), mode="bicubic")
        return planes.squeeze(0).permute(1, 2, 0).flatten(0, 1)

    def forget(self) -> None:
        """Drop stretched tables; call when the weight changes."""
        self._stretched.clear()


def rope_2d(grids: Sequence[Grid], head_dim: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of the 2-D rotary angles, each (sum(h*w), head_dim/2) float32.

    Pair 2j turns with the column, pair 2j+1 with the row (the published docstring says the opposite of what its code
    does). Computed for the grids at hand: nothing of the size of the largest image is kept.
    """
    step = torch.arange(0, head_dim, 4, device=device, dtype=torch.float32)[: head_dim // 4]
    freqs = ROPE_THETA ** -(step / head_dim)  # (head_dim/4,)
    angles = []
    for grid in grids:
        rows = torch.arange(grid.height, device=device, dtype=torch.float32).repeat_interleave(grid.width)
        cols = torch.arange(grid.width, device=device, dtype=torch.float32).repeat(grid.height)
        both = torch.stack([torch.outer(cols, freqs), torch.outer(rows, freqs)], dim=-1)  # (h*w, head_dim/4, 2)
        angles.append(both.flatten(1))
    packed = torch.cat(angles)
    return packed.cos(), packed.sin()


def rotate_pairs(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate adjacent pairs of the last axis; x is (L, heads, head_dim), cos and sin (L, head_dim/2)."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (L, heads, head_dim/2) each
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


class Packing:
    """Where each image lies in the packed sequence, and its rotary angles: computed once, used by every block."""

    def __init__(self, grids: Sequence[Grid], head_dim: int, device: torch.device) -> None:
        lengths = torch.tensor([grid.num_patches for grid in grids], dtype=torch.int32)
        self.cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)).to(device)
        self.max_seqlen = lengths.max()  # on the host: attention kernels take it as an integer
        self.cos, self.sin = rope_2d(grids, head_dim, device)


class Attention(nn.Module):
    """Bidirectional, block-diagonal over images."""

    def __init__(self, vision: VisionConfig, quant: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        heads, replicate = vision.num_attention_heads, is_vit_use_data_parallel()
        self.head_dim = vision.head_dim
        self.wqkv = QKVParallelLinear(
            vision.hidden_size,
            self.head_dim,
            heads,
            bias=True,
            quant_config=quant,
            prefix=f"{prefix}.wqkv",
            disable_tp=replicate,
        )
        self.wo = RowParallelLinear(
            vision.hidden_size,
            vision.hidden_size,
            bias=True,
            quant_config=quant,
            prefix=f"{prefix}.wo",
            disable_tp=replicate,
        )
        self.heads = self.wqkv.num_heads  # this rank's share
        self.attend = MMEncoderAttention(self.heads, self.head_dim, self.head_dim**-0.5, prefix=f"{prefix}.attn")

    def forward(self, x: torch.Tensor, packing: Packing) -> torch.Tensor:
        qkv, _ = self.wqkv(x)  # (L, 3*heads*head_dim): all q, all k, all v
        q, k, v = qkv.view(-1, 3, self.heads, self.head_dim).unbind(1)
        q = rotate_pairs(q, packing.cos, packing.sin)
        k = rotate_pairs(k, packing.cos, packing.sin)
        out = self.attend(
            q.unsqueeze(0),
            k.unsqueeze(0),
            v.unsqueeze(0),
            cu_seqlens=packing.cu_seqlens,
            max_seqlen=packing.max_seqlen,
        )
        out, _ = self.wo(out.reshape(x.shape[0], self.heads * self.head_dim))
        return out


class FeedForward(nn.Module):
    """fc1(gelu_tanh(fc0(x)))."""

    def __init__(self, vision: VisionConfig, quant: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        replicate = is_vit_use_data_parallel()
        self.fc0 = ColumnParallelLinear(
            vision.hidden_size,
            vision.intermediate_size,
            quant_config=quant,
            prefix=f"{prefix}.fc0",
            disable_tp=replicate,
        )
        self.fc1 = RowParallelLinear(
            vision.intermediate_size,
            vision.hidden_size,
            quant_config=quant,
            prefix=f"{prefix}.fc1",
            disable_tp=replicate,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.fc0(x)
        x, _ = self.fc1(F.gelu(x, approximate="tanh"))
        return x


class Block(nn.Module):
    """Pre-norm transformer block. Attention's linears sit on the block itself, as the checkpoint names them."""

    def __init__(self, vision: VisionConfig, quant: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        self.norm0 = nn.LayerNorm(vision.hidden_size, eps=LAYER_NORM_EPS)
        self.norm1 = nn.LayerNorm(vision.hidden_size, eps=LAYER_NORM_EPS)
        self.attn = Attention(vision, quant, prefix)
        self.mlp = FeedForward(vision, quant, f"{prefix}.mlp")

    def forward(self, x: torch.Tensor, packing: Packing) -> torch.Tensor:
        x = x + self.attn(self.norm0(x), packing)
        return x + self.mlp(self.norm1(x))


class Encoder(nn.Module):
    def __init__(self, vision: VisionConfig, quant: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(vision, quant, f"{prefix}.blocks.{i}") for i in range(vision.num_hidden_layers)
        )
        self.final_layernorm = nn.LayerNorm(vision.hidden_size, eps=LAYER_NORM_EPS)

    def forward(self, x: torch.Tensor, packing: Packing) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, packing)
        return self.final_layernorm(x)


class MoonViT(nn.Module):
    """Patches of all images, packed -> the four sub-patches of every token, (tokens, merge, hidden)."""

    def __init__(
        self, vision: VisionConfig, image: ImageConfig, quant: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__()
        self.config = vision
        # This name and `config` are what vLLM's data-parallel encoder reads.
        self.merge_kernel_size = vision.merge_kernel_size
        self.head_dim = vision.head_dim
        self.patch_embed = PatchEmbedding(vision, image)
        self.encoder = Encoder(vision, quant, f"{prefix}.encoder")

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.final_layernorm.weight.dtype

    def forward(self, patches: torch.Tensor, grid_hws: torch.Tensor) -> torch.Tensor:
        """patches (sum(h*w), 3, p, p) uint8, grid_hws (images, 2) on the host -> (tokens, merge, hidden)."""
        grids = [Grid(height, width) for height, width in grid_hws.tolist()]
        packing = Packing(grids, self.head_dim, patches.device)
        x = self.patch_embed(patches, grids).to(self.dtype)
        return self.merge(self.encoder(x, packing), grids)

    def merge(self, x: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        """(sum(h*w), hidden) -> (sum(h*w)/merge, merge, hidden): tokens in raster order, sub-patches row by row."""
        kh, kw = self.merge_kernel_size
        lengths = [grid.num_patches for grid in grids]
        merged = []
        for part, grid in zip(x.split(lengths), grids, strict=True):
            cells = part.view(grid.height // kh, kh, grid.width // kw, kw, -1)
            merged.append(cells.permute(0, 2, 1, 3, 4).reshape(-1, kh * kw, x.shape[-1]))
        return torch.cat(merged)
