"""MoonViT: packed uint8 patches of many images -> features at native resolution. Knows no text and no file format."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from vllm.model_executor.layers.attention.mm_encoder_attention import MMEncoderAttention
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.models.vision import is_vit_use_data_parallel

from kimi_serve.inputs import passes
from kimi_serve.inputs.config import ImageConfig, VisionConfig
from kimi_serve.inputs.geometry import Grid
from kimi_serve.model import cpu_products
from kimi_serve.model.packing import Packing, Run, runs, turn

LAYER_NORM_EPS = 1e-5  # PyTorch's default, which the published tower uses without naming it
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
        for run in runs(grids):
            x[run.rows].view(run.images, run.grid.num_patches, -1).add_(self.pos_emb(run.grid))
        return x

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

    def forward(self, grid: Grid) -> torch.Tensor:
        """(h*w, hidden) float32."""
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


class Norm(nn.LayerNorm):
    """Over the last axis, of activations in any type."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=LAYER_NORM_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


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
        qkv = qkv.view(-1, 3, self.heads, self.head_dim)
        if x.device.type == "cpu":
            qkv = by_head(qkv)
        q, k, v = qkv.unbind(1)
        q, k = turn(q, packing.turns), turn(k, packing.turns)
        within = self._on_cpu if x.device.type == "cpu" else self._elsewhere
        out, _ = self.wo(within(q, k, v, packing).reshape(-1, self.heads * self.head_dim))
        return out

    def _on_cpu(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packing: Packing) -> torch.Tensor:
        """One call for all images of a grid: a call's own cost is that of a small image."""

        def one(run: Run) -> torch.Tensor:
            return self.attend(*(each[run.rows].unflatten(0, (run.images, -1)) for each in (q, k, v))).flatten(0, 1)

        parts = [one(run) for run in packing.runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _elsewhere(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packing: Packing) -> torch.Tensor:
        packed = (each.unsqueeze(0) for each in (q, k, v))
        return self.attend(*packed, cu_seqlens=packing.cu_seqlens, max_seqlen=packing.max_seqlen)


def by_head(qkv: torch.Tensor) -> torch.Tensor:
    """(L, 3, heads, head_dim) as it is, but each head's rows lie together: attention on a CPU reads them so."""
    return qkv.permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3)


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
    """Pre-norm transformer block, which changes what it is given: nothing else has to be kept."""

    def __init__(self, vision: VisionConfig, quant: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        self.norm0 = Norm(vision.hidden_size)
        self.norm1 = Norm(vision.hidden_size)
        self.attn = Attention(vision, quant, prefix)
        self.mlp = FeedForward(vision, quant, f"{prefix}.mlp")

    def forward(self, x: torch.Tensor, packing: Packing) -> None:
        x += self.attn(self.norm0(x), packing)
        for part in x.split(packing.feed):
            part += self.mlp(self.norm1(part))


class Encoder(nn.Module):
    def __init__(self, vision: VisionConfig, quant: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(vision, quant, f"{prefix}.blocks.{i}") for i in range(vision.num_hidden_layers)
        )
        self.final_layernorm = Norm(vision.hidden_size)

    def forward(self, x: torch.Tensor, packing: Packing) -> torch.Tensor:
        for block in self.blocks:
            block(x, packing)
        return self.final_layernorm(x)


class MoonViT(nn.Module):
    """Patches of all images, packed -> the four sub-patches of every token, (tokens, merge, hidden).

    `in_order`: all images in one pass, as they come. vLLM's layers with adapters know an image by where its rows lie.
    """

    def __init__(
        self,
        vision: VisionConfig,
        image: ImageConfig,
        quant: QuantizationConfig | None = None,
        prefix: str = "",
        *,
        in_order: bool = False,
    ) -> None:
        super().__init__()
        self.in_order = in_order
        self.config = vision
        # This name and `config` are what vLLM's data-parallel encoder reads.
        self.merge_kernel_size = vision.merge_kernel_size
        self.head_dim = vision.head_dim
        self.patch_embed = PatchEmbedding(vision, image)
        self.encoder = Encoder(vision, quant, f"{prefix}.encoder")
        cpu_products.widen(self)

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.final_layernorm.weight.dtype

    @torch.no_grad()  # it works in place, and vLLM does not always turn gradients off
    def forward(self, patches: torch.Tensor, grid_hws: torch.Tensor) -> torch.Tensor:
        """patches (sum(h*w), 3, p, p) uint8, grid_hws (images, 2) on the host -> (tokens, merge, hidden).

        In passes, unless in order: what is held beside input and result does not grow with the number of images.
        """
        grids = [Grid(height, width) for height, width in grid_hws.tolist()]
        merge, hidden = math.prod(self.merge_kernel_size), self.config.hidden_size
        tokens = patches.new_empty((len(patches) // merge, merge, hidden), dtype=self.dtype)
        lengths = [grid.num_patches for grid in grids]
        parts, places = patches.split(lengths), tokens.split([length // merge for length in lengths])
        most = passes.CPU_PATCHES if patches.device.type == "cpu" else passes.PATCHES
        for chosen in [list(range(len(grids)))] if self.in_order else passes.passes(grids, most):
            self._see([parts[n] for n in chosen], [grids[n] for n in chosen], [places[n] for n in chosen])
        return tokens

    def _see(self, parts: Sequence[torch.Tensor], grids: Sequence[Grid], places: Sequence[torch.Tensor]) -> None:
        """Patches of one pass's images -> their tokens, written to their places."""
        patches = parts[0] if len(parts) == 1 else torch.cat(parts)
        feed = len(patches) if self.in_order else passes.FEED_PATCHES
        packing = Packing(grids, self.head_dim, patches.device, feed)
        x = self.patch_embed(patches, grids).to(cpu_products.dtype_for(patches.device, self.dtype))
        features = self.encoder(x, packing).split([grid.num_patches for grid in grids])
        for rows, grid, tokens in zip(features, grids, places, strict=True):
            self._merge(rows, grid, tokens)

    def _merge(self, rows: torch.Tensor, grid: Grid, tokens: torch.Tensor) -> None:
        """Write (h*w, hidden) as (h*w/merge, merge, hidden): tokens in raster order, sub-patches row by row."""
        kh, kw = self.merge_kernel_size
        down, across = grid.height // kh, grid.width // kw
        cells = rows.view(down, kh, across, kw, -1).transpose(1, 2)  # (down, across, kh, kw, hidden)
        tokens.view(down, across, kh, kw, -1).copy_(cells)
