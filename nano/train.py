"""Train kimi-vl-nano: `python -m nano.train --folder DIR --minutes 60`. Knows the loop; the data is nano.batches'."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from kimi_serve.inputs.tokenizer import Tokenizer
from nano import questions, vocabulary
from nano.batches import Batch, held_out, stream, style
from nano.labels import CHARACTERS, MOST_CHARACTERS
from nano.muon import Muon
from nano.pictures import COLOURS, SHAPES
from nano.start import initialise
from tests.oracle.decoder import Moe
from tests.oracle.kimi_vl import KimiVl, from_config, normalise

HEAD_SIZES = {
    "character": 2 * (1 + len(CHARACTERS)),
    "place": 2 * 2 * MOST_CHARACTERS,
    "shape": 1 + len(SHAPES),
    "colour": len(COLOURS),
    "offset": 2,
}


class DenseHeads(nn.Module):
    """What stands in every patch, read off the tower. Training only: the tower learns to see before it is asked."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, size) for name, size in HEAD_SIZES.items()})

    def loss(self, features: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """features (pictures, tokens, 4, hidden)."""
        out = {name: head(self.norm(features)) for name, head in self.heads.items()}
        character = out["character"].unflatten(-1, (2, -1))
        place = out["place"].unflatten(-1, (2, -1))
        weight = torch.ones(1 + len(CHARACTERS))
        weight[0] = 0.04
        seen = labels["shape"] > 0
        shape_weight = torch.ones(1 + len(SHAPES))
        shape_weight[0] = 0.05
        losses = {
            "character": F.cross_entropy(character.flatten(0, -2), labels["character"].flatten(), weight=weight),
            "place": F.cross_entropy(place.flatten(0, -2), labels["place"].flatten(), ignore_index=-100)
            if (labels["place"] >= 0).any()
            else features.sum() * 0,
            "shape": F.cross_entropy(out["shape"].flatten(0, -2), labels["shape"].flatten(), weight=shape_weight),
            "colour": F.cross_entropy(out["colour"].flatten(0, -2), labels["colour"].flatten(), ignore_index=-100)
            if seen.any()
            else features.sum() * 0,
            "offset": 10 * ((out["offset"] - labels["offset"])[seen] ** 2).mean() if seen.any() else features.sum() * 0,
        }
        there = labels["character"] > 0
        right = (character.argmax(-1) == labels["character"])[there]
        stats = {name: float(v.detach()) for name, v in losses.items()}
        stats["characters_right"] = float(right.float().mean()) if there.any() else math.nan
        return sum(losses.values(), torch.zeros(())), stats


def configuration(vocab: int) -> dict[str, Any]:
    return {
        "architectures": ["KimiVLForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "configuration_kimi_vl.KimiVLConfig",
            "AutoModel": "modeling_kimi_vl.KimiVLForConditionalGeneration",
            "AutoModelForCausalLM": "modeling_kimi_vl.KimiVLForConditionalGeneration",
        },
        "model_type": "kimi_vl",
        "ignore_index": -100,
        "media_placeholder_token_id": vocab - 256 + 21,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.3",
        "tie_word_embeddings": False,
        "vocab_size": vocab,
        "vision_config": {
            "model_type": "moonvit",
            "patch_size": 14,
            "num_attention_heads": 2,
            "num_hidden_layers": 4,
            "hidden_size": 144,
            "intermediate_size": 432,
            "init_pos_emb_height": 64,
            "init_pos_emb_width": 64,
            "merge_kernel_size": [2, 2],
            "torch_dtype": "bfloat16",
        },
        "text_config": {
            "vocab_size": vocab,
            "max_position_embeddings": 131072,
            "hidden_size": 192,
            "intermediate_size": 512,
            "moe_intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "n_shared_experts": 1,
            "n_routed_experts": 8,
            "ep_size": 1,
            "routed_scaling_factor": 2.446,
            "kv_lora_rank": 512,
            "q_lora_rank": None,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "qk_nope_head_dim": 128,
            "topk_method": "noaux_tc",
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_layer_freq": 1,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "scoring_func": "sigmoid",
            "aux_loss_alpha": 0.001,
            "seq_aux": True,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "rms_norm_eps": 1e-05,
            "pretraining_tp": 1,
            "use_cache": True,
            "rope_theta": 800000.0,
            "rope_scaling": None,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": vocab - 256,
            "pad_token_id": vocab - 1,
            "eos_token_id": vocab - 255,
            "torch_dtype": "bfloat16",
            "tie_word_embeddings": False,
        },
    }


def prepare(folder: Path) -> dict[str, Any]:
    """Write the vocabulary and configuration once."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.json").exists():
        base = vocabulary.write(folder / "tiktoken.model", questions.vocabulary())
        (folder / "tokenizer_config.json").write_text(json.dumps(vocabulary.config(base), indent=2))
        (folder / "config.json").write_text(json.dumps(configuration(base + 256), indent=2))
    loaded: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return loaded


class Optimizers:
    """Muon for the layers' matrices, which learn in far fewer steps with it; AdamW for all else."""

    def __init__(self, model: nn.Module, rate: float) -> None:
        def is_inner(name: str, p: Tensor) -> bool:
            layer = ".blocks." in name or ".layers." in name
            # The cubic cost of orthogonalising is only worth it for small matrices.
            return layer and p.ndim == 2 and min(p.shape) <= 256

        inner = [p for n, p in model.named_parameters() if is_inner(n, p)]
        matrices = [p for n, p in model.named_parameters() if not is_inner(n, p) and p.ndim >= 2]
        vectors = [p for n, p in model.named_parameters() if p.ndim < 2]
        self.all = [
            Muon(inner, rate, weight_decay=0.05),
            torch.optim.AdamW(
                [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
                lr=rate,
                betas=(0.9, 0.98),
                fused=True,
            ),
        ]

    def set_rate(self, rate: float) -> None:
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def step(self) -> None:
        for optimizer in self.all:
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)

    def parameters(self) -> list[Tensor]:
        return [p for optimizer in self.all for group in optimizer.param_groups for p in group["params"]]

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.all]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)


def see(model: KimiVl, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
    """Tower features and projected rows of a batch's pictures."""
    if not len(batch.patches):
        return None, None
    features = model.vision_tower(normalise(torch.from_numpy(batch.patches)), batch.rows, batch.columns)
    return features, model.multi_modal_projector(features).flatten(0, 1)


def answer_loss(model: KimiVl, batch: Batch, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss over answer tokens; which predictions are right; which answer each belongs to."""
    hidden = model.hidden(torch.from_numpy(batch.ids), rows)
    targets = torch.from_numpy(batch.targets)
    where = targets >= 0
    logits = model.logits(hidden[where])
    return (
        F.cross_entropy(logits, targets[where]),
        logits.argmax(-1) == targets[where],
        torch.from_numpy(batch.answers)[where],
    )


@torch.no_grad()
def examine(model: KimiVl, batches: list[Batch]) -> dict[str, float]:
    """Share of answers that are right to the last token: greedy decoding would give exactly these."""
    right: dict[str, list[bool]] = {}
    for batch in batches:
        _, rows = see(model, batch)
        _, correct, answers = answer_loss(model, batch, rows)
        for number, task in enumerate(batch.tasks):
            right.setdefault(task, []).append(bool(correct[answers == number].all()))
    return {task: round(sum(v) / len(v), 3) for task, v in right.items()}


def balance(model: KimiVl, step: float = 0.001) -> list[float]:
    """Raise the bias of experts with too few tokens, lower that of busy ones; the load's largest share per layer."""
    shares = []
    for module in model.modules():
        if isinstance(module, Moe) and module.last_ids is not None:
            load = torch.bincount(module.last_ids.flatten(), minlength=len(module.experts)).float()
            module.gate.e_score_correction_bias += step * torch.sign(load.mean() - load)
            shares.append(float(load.max() / load.sum()))
    return shares


def feed(folder: str, seed: int, size: int, pages: float, queue: Any) -> None:
    os.nice(5)
    torch.set_num_threads(1)
    for batch in stream(folder, seed, size, pages):
        queue.put(batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="run folder: state, log, vocabulary, configuration")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument(
        "--pages", type=float, default=0.15, help="share of steps that train the tower alone, on crowded pictures"
    )
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rate", type=float, default=2.5e-3)
    parser.add_argument("--final", type=float, default=0.03, help="the last learning rate, as a share of the first")
    parser.add_argument("--new-optimizer", action="store_true", help="resume the weights alone")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--examine-every", type=float, default=4, help="minutes")
    train(parser.parse_args())


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    config = prepare(args.folder)
    model, heads = from_config(config), DenseHeads(config["vision_config"]["hidden_size"])
    initialise(model, style(held_out=False), args.seed)
    both = nn.ModuleList([model, heads])
    optimizer = Optimizers(both, args.rate)
    state_file = args.folder / "state.pt"
    done = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        both.load_state_dict(
            {k: v for k, v in state["model"].items() if v.shape == both.state_dict()[k].shape}, strict=False
        )
        if not args.new_optimizer:
            optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    tests = held_out(Tokenizer.from_directory(args.folder), 48)
    context = mp.get_context("spawn")
    queue = context.Queue(8)
    worker = context.Process(
        target=feed, args=(str(args.folder), args.seed * 1000 + done, args.batch, args.pages, queue), daemon=True
    )
    worker.start()
    begun = _begun(args.folder)
    last_examined = last_saved = time.time()
    bar = tqdm(total=round(args.minutes * 60), unit="s")
    running: dict[str, float] = {}
    step = done
    with (args.folder / "log.jsonl").open("a") as log:
        while (elapsed := time.time() - begun) < args.minutes * 60:
            part = elapsed / (args.minutes * 60)
            rate = (
                args.rate
                * min(1, (step - done + 1) / 40)
                * (args.final + (1 - args.final) * 0.5 * (1 + math.cos(math.pi * part)))
            )
            optimizer.set_rate(rate)
            stats = learn(model, heads, optimizer, queue.get())
            for name, value in stats.items():
                if not math.isnan(value):
                    running[name] = 0.97 * running.get(name, value) + 0.03 * value
            step += 1
            bar.n = round(elapsed)
            bar.set_postfix(
                step=step,
                loss=f"{running.get('answers', 0):.3f}",
                seeing=f"{running.get('seeing', 0):.3f}",
                **{k[:5]: f"{running[k]:.2f}" for k in (*HEAD_SIZES, "characters_right") if k in running},
            )
            now = time.time()
            if now - last_examined > args.examine_every * 60:
                record = {
                    "step": step,
                    "minutes": round(elapsed / 60, 1),
                    "rate": rate,
                    **{k: round(v, 4) for k, v in running.items()},
                    "held_out": examine(model, tests),
                }
                log.write(json.dumps(record) + "\n")
                log.flush()
                last_examined = now
            if now - last_saved > 120:
                save(state_file, both, optimizer, step)
                last_saved = now
        log.write(
            json.dumps(
                {
                    "step": step,
                    "minutes": args.minutes,
                    **{k: round(v, 4) for k, v in running.items()},
                    "held_out": examine(model, tests),
                }
            )
            + "\n"
        )
    save(state_file, both, optimizer, step)
    worker.terminate()


def _begun(folder: Path) -> float:
    """When this run began: the learning rate follows the clock, so a stopped run goes on where the schedule is."""
    file = folder / "begun"
    if not file.exists():
        file.write_text(str(time.time()))
    return float(file.read_text())


def learn(model: KimiVl, heads: DenseHeads, optimizer: Optimizers, batch: Batch) -> dict[str, float]:
    features, rows = see(model, batch)
    assert features is not None
    seeing, stats = heads.loss(features, {k: torch.from_numpy(v) for k, v in batch.labels.items()})
    stats["seeing"] = float(seeing.detach())
    loss = seeing
    if batch.tasks:
        answers, correct, _ = answer_loss(model, batch, rows)
        loss = answers + 0.3 * seeing
        stats |= {"answers": float(answers.detach()), "tokens_right": float(correct.float().mean())}
        stats["busiest_expert"] = max(balance(model))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.parameters(), 1.0)
    optimizer.step()
    return stats


def save(path: Path, both: nn.Module, optimizer: Optimizers, step: int) -> None:
    """Atomically, so that a stop in the middle loses nothing."""
    partial = path.with_suffix(".partial")
    torch.save({"model": both.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial)
    partial.replace(path)


if __name__ == "__main__":
    main()
