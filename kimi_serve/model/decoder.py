"""The text decoder: embeddings -> latent attention and experts -> logits. Knows token positions; never sees a pixel."""

from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.utils import PPMissingLayer, make_empty_intermediate_tensors_factory, make_layers
from vllm.sequence import IntermediateTensors

from kimi_serve.inputs.config import TextConfig
from kimi_serve.model.attention import ExpandedAttention, LatentAttention
from kimi_serve.model.cpu_routing import uses_our_kernels
from kimi_serve.model.moe import DenseMLP, SparseMLP
from kimi_serve.model.norm import norm


@dataclass(frozen=True, slots=True)
class Parts:
    """What a layer is made of here."""

    attention: type[LatentAttention | ExpandedAttention]
    dense: type[DenseMLP]
    sparse: type[SparseMLP]

    @classmethod
    def of(cls, vllm_config: VllmConfig) -> "Parts":
        latent = vllm_config.model_config.use_mla
        # An adapter is added to single linears, which a part in one call would pass by.
        if not uses_our_kernels(vllm_config.quant_config) or vllm_config.lora_config is not None:
            return cls(LatentAttention if latent else ExpandedAttention, DenseMLP, SparseMLP)
        from kimi_serve.model import cpu_layers  # loads what only a CPU needs

        attention = LatentAttention if latent else cpu_layers.KernelAttention
        return cls(attention, cpu_layers.KernelMLP, cpu_layers.KernelSparseMLP)


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, with the residual carried beside the hidden state."""

    def __init__(self, text: TextConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        parts = Parts.of(vllm_config)
        self.self_attn = parts.attention(text, vllm_config, f"{prefix}.self_attn")
        self.mlp = (
            parts.sparse(text, vllm_config, f"{prefix}.mlp")
            if text.is_sparse(int(prefix.rsplit(".", 1)[1]))
            else parts.dense(text.hidden_size, text.intermediate_size, vllm_config.quant_config, f"{prefix}.mlp")
        )
        self.input_layernorm = norm(text.hidden_size, text.rms_norm_eps, vllm_config.quant_config)
        self.post_attention_layernorm = norm(text.hidden_size, text.rms_norm_eps, vllm_config.quant_config)

    def forward(
        self, positions: torch.Tensor, x: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            residual = x
            x = self.input_layernorm(x)
        else:
            x, residual = self.input_layernorm(x, residual)
        x = self.self_attn(positions, x)
        x, residual = self.post_attention_layernorm(x, residual)
        return self.mlp(x), residual


@support_torch_compile
class Decoder(nn.Module):
    """The stack of layers of this pipeline stage."""

    def __init__(self, *, vllm_config: VllmConfig, text: TextConfig, prefix: str = "") -> None:
        super().__init__()
        stage = get_pp_group()
        self.embed_tokens = (
            VocabParallelEmbedding(
                text.vocab_size,
                text.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=f"{prefix}.embed_tokens",
            )
            if stage.is_first_rank
            else PPMissingLayer()
        )
        self.start_layer, self.end_layer, self.layers = make_layers(
            text.num_hidden_layers,
            lambda prefix: DecoderLayer(text, vllm_config, prefix),
            prefix=f"{prefix}.layers",
        )
        self.norm = (
            norm(text.hidden_size, text.rms_norm_eps, vllm_config.quant_config)
            if stage.is_last_rank
            else PPMissingLayer()
        )
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states", "residual"], text.hidden_size
        )

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        if intermediate_tensors is not None:
            x, residual = intermediate_tensors["hidden_states"], intermediate_tensors["residual"]
        else:
            x = inputs_embeds if inputs_embeds is not None else self.embed_input_ids(input_ids)
            residual = None
        for layer in islice(self.layers, self.start_layer, self.end_layer):
            x, residual = layer(positions, x, residual)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": x, "residual": residual})
        x, _ = self.norm(x, residual)
        return x


class LanguageModel(nn.Module):
    """Decoder and head, under the checkpoint's names `model` and `lm_head`."""

    def __init__(self, *, vllm_config: VllmConfig, text: TextConfig, prefix: str = "") -> None:
        super().__init__()
        self.model = Decoder(vllm_config=vllm_config, text=text, prefix=f"{prefix}.model")
        self.lm_head = (
            ParallelLMHead(
                text.vocab_size,
                text.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=f"{prefix}.lm_head",
            )
            if get_pp_group().is_last_rank
            else PPMissingLayer()
        )
        self.logits_processor = LogitsProcessor(text.vocab_size)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.logits_processor(self.lm_head, hidden_states)
