"""What one step of decoding must read and multiply: bytes, products, experts. Knows a checkpoint; never an engine."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from kimi_serve.inputs.config import TextConfig, load_checkpoint
from kimi_serve.inputs.tensors import expected_tensors
from kimi_serve.kernels import ops
from kimi_serve.quantize import decoder
from kimi_serve.quantize.reading import Model
from kimi_serve.quantize.source import Weights

DECODER = "language_model."
EXPERTS = ".mlp.experts."
EMBEDDING = "embed_tokens"  # one row a token


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a checkpoint: `always` is read in every step, `expert` for each routed expert that is used in a layer."""

    always: int  # bytes
    expert: int  # bytes
    products: int  # multiplications a token, lm_head left out
    head_products: int

    def bytes_read(self, experts: float) -> float:
        return self.always + experts * self.expert


def cost_of(folder: Path) -> Cost:
    """From what is stored: packed values, scales, norms, the router."""
    text = load_checkpoint(folder).model.text
    stored = [t for t in Weights(folder).tensors.values() if t.name.startswith(DECODER) and EMBEDDING not in t.name]
    routed = sum(t.nbytes for t in stored if EXPERTS in t.name)
    return Cost(
        always=sum(t.nbytes for t in stored) - routed,
        expert=routed // (sparse_layers(text) * text.n_routed_experts),
        products=_products(folder, text),
        head_products=text.vocab_size * text.hidden_size,
    )


def cost_in(folder: Path, bits_a_weight: float) -> Cost:
    """The same model where each of its matrices takes so many bits a weight: a peer's format."""
    text, own = load_checkpoint(folder).model.text, cost_of(folder)
    expert = 3 * text.hidden_size * text.moe_intermediate_size
    chosen = sparse_layers(text) * text.num_experts_per_tok * expert
    always = own.products - chosen + own.head_products
    return Cost(round(always * bits_a_weight / 8), round(expert * bits_a_weight / 8), own.products, own.head_products)


def sparse_layers(text: TextConfig) -> int:
    return sum(text.is_sparse(index) for index in range(text.num_hidden_layers))


def _products(folder: Path, text: TextConfig) -> int:
    shapes = expected_tensors(load_checkpoint(folder).model).items()
    matrices = {n: math.prod(s) for n, s in shapes if n.startswith(DECODER) and len(s) == 2 and EMBEDDING not in n}
    routed = sum(size for name, size in matrices.items() if EXPERTS in name)
    every = sum(matrices.values()) - routed - text.vocab_size * text.hidden_size
    return every + routed * text.num_experts_per_tok // text.n_routed_experts


@dataclass(frozen=True, slots=True)
class Routing:
    """Which experts a prompt's tokens chose, by layer."""

    last: Sequence[Sequence[Sequence[int]]]  # (layers, prompts, top k) of each prompt's last token
    all_tokens: Sequence[int]  # experts used by all tokens together, a layer
    tokens: int
    experts: int  # there are

    def used(self, batch: int) -> int:
        """Experts that one step of the first prompts' last tokens reads, over all layers."""
        return sum(len({expert for choice in layer[:batch] for expert in choice}) for layer in self.last)

    def mean_used(self, batch: int) -> float:
        return self.used(batch) / len(self.last)

    def __str__(self) -> str:
        steps = ", ".join(f"{batch}: {self.mean_used(batch):.1f}" for batch in (1, 8, 16))
        least, most = min(self.all_tokens), max(self.all_tokens)
        return (
            f"experts used in a layer by one step of so many sequences: {steps} of {self.experts}; "
            f"by {self.tokens} tokens: {least} to {most}"
        )


def routing_of(folder: Path, prompts: Sequence[Sequence[int]]) -> Routing:
    """By a plain forward, whatever engine serves the weights; kept beside the folder, since it takes a minute."""
    kept = folder.with_name(f"{folder.name}.routing.json")
    if not kept.exists():
        last, together = choices(folder, prompts)
        kept.write_text(json.dumps({"prompts": prompts, "last": last, "all_tokens": together}), encoding="utf-8")
    found = json.loads(kept.read_text(encoding="utf-8"))
    if found["prompts"] != [list(prompt) for prompt in prompts]:
        kept.unlink()
        return routing_of(folder, prompts)
    experts = load_checkpoint(folder).model.text.n_routed_experts
    return Routing(found["last"], found["all_tokens"], sum(map(len, prompts)), experts)


@torch.no_grad()
def choices(folder: Path, prompts: Sequence[Sequence[int]]) -> tuple[list[list[list[int]]], list[int]]:
    """Each sparse layer's choices for each prompt's last token, and how many experts all tokens used."""
    text, lengths = load_checkpoint(folder).model.text, [len(prompt) for prompt in prompts]
    ends = torch.tensor(lengths).cumsum(0) - 1
    last, together = [], []
    with Weights(folder) as weights:
        model = Model(weights)
        x = decoder.embed(model, torch.tensor([token for prompt in prompts for token in prompt]))
        for index in range(text.num_hidden_layers):
            layer = f"{decoder.ROOT}.layers.{index}"
            x = x + decoder.attend(model, layer, _norm(model, f"{layer}.input_layernorm", x, text), text, lengths)
            inner = _norm(model, f"{layer}.post_attention_layernorm", x, text)
            if not text.is_sparse(index):
                x = x + decoder.dense(model, f"{layer}.mlp", inner, text)
                continue
            ids, routing = decoder.route(model, f"{layer}.mlp.gate", inner, text)
            last.append(ids[ends].tolist())
            together.append(len(ids.unique()))
            shared = decoder.feed_forward(model, f"{layer}.mlp.shared_experts", inner)
            x = x + shared + _experts(model, f"{layer}.mlp.experts", inner, ids, routing, text.n_routed_experts)
    return last, together


def _experts(model: Model, root: str, x: Tensor, ids: Tensor, routing: Tensor, count: int) -> Tensor:
    """The routed sum by our kernels: plain torch takes minutes to unpack fourteen billion weights."""
    form = model.format_of(f"{root}.0.down_proj.weight")
    assert form is not None

    def stacked(suffix: str, *parts: str) -> Tensor:
        names = [[f"{root}.{expert}.{part}_proj.weight{suffix}" for part in parts] for expert in range(count)]
        return torch.stack([torch.cat([model.weights.rows(name) for name in each]) for each in names])

    values = "_packed" if form.bits == 4 else ""
    gate_up = stacked(values, "gate", "up"), stacked("_scale", "gate", "up")
    return ops.experts(
        x, ids, routing, *gate_up, stacked(values, "down"), stacked("_scale", "down"), form.group_size or 0, False
    )


def _norm(model: Model, name: str, x: Tensor, text: TextConfig) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], model.tensor(f"{name}.weight"), text.rms_norm_eps)
