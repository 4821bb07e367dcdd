"""Learning, resuming and exporting on a tiny run. Knows nano.train's seams; measures no quality."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kimi_serve.inputs.chat import render_text
from kimi_serve.inputs.config import load_checkpoint
from kimi_serve.inputs.tokenizer import Tokenizer
from nano import batches, export
from nano.batches import Batch, Source, Writer
from nano.questions import DEFAULT_SYSTEM, Turn
from nano.train import DenseHeads, Optimizers, learn, prepare, save
from tests.oracle.kimi_vl import KimiVl, from_config, load

Run = tuple[KimiVl, DenseHeads, nn.ModuleList, Optimizers]


@pytest.fixture(autouse=True)
def own_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "find", lambda names: [""])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare(tmp_path)
    return tmp_path


def begin(folder: Path) -> Run:
    torch.manual_seed(0)
    config = prepare(folder)
    model, heads = from_config(config), DenseHeads(config["vision_config"]["hidden_size"])
    both = nn.ModuleList([model, heads])
    return model, heads, both, Optimizers(both, 1e-3)


def two_batches(folder: Path) -> list[Batch]:
    source = Source(Tokenizer.from_directory(folder), 1, size=2, most_turns=2)
    return [source.batch("text"), source.batch("shapes")]


def step(run: Run, batch: Batch) -> None:
    model, heads, _, optimizer = run
    learn(model, heads, optimizer, batch)


def test_saved_run_goes_on_as_if_it_had_never_stopped(folder: Path) -> None:
    first, second = two_batches(folder)
    whole = begin(folder)
    step(whole, first)
    save(folder / "state.pt", whole[2], whole[3], 1)
    step(whole, second)
    resumed = begin(folder)
    state = torch.load(folder / "state.pt", weights_only=True)
    resumed[2].load_state_dict(state["model"])
    resumed[3].load_state_dict(state["optimizer"])
    step(resumed, second)
    for name, value in whole[2].state_dict().items():
        torch.testing.assert_close(resumed[2].state_dict()[name], value, rtol=0, atol=1e-6, msg=name)


def test_training_moves_the_correction_bias(folder: Path) -> None:
    run = begin(folder)
    step(run, two_batches(folder)[1])
    bias = [b for n, b in run[0].named_buffers() if n.endswith("e_score_correction_bias")]
    assert bias
    assert all(b.abs().max() > 0 for b in bias)


def test_export_is_the_trained_model_rounded_to_bfloat16(folder: Path, tmp_path: Path) -> None:
    model, _, both, optimizer = begin(folder)
    save(folder / "state.pt", both, optimizer, 0)
    target = tmp_path / "published"
    assert export.export(folder, target) <= 25e6
    back = load(target).state_dict()
    for name, value in model.state_dict().items():
        rounded = value if name.endswith(export.BIAS) else value.bfloat16().float()
        torch.testing.assert_close(back[name], rounded, rtol=0, atol=0, msg=name)


def test_export_is_read_by_the_packages_own_config(folder: Path, tmp_path: Path) -> None:
    _, _, both, optimizer = begin(folder)
    save(folder / "state.pt", both, optimizer, 0)
    export.export(folder, tmp_path / "published")
    checkpoint = load_checkpoint(tmp_path / "published")
    tokenizer = Tokenizer.from_directory(tmp_path / "published")
    assert checkpoint.model.media_placeholder_token_id == tokenizer.special_id("<|media_pad|>")
    assert checkpoint.model.text.vocab_size == tokenizer.vocab_size


def test_training_reads_conversations_in_the_published_template(folder: Path) -> None:
    """What is trained is what the server will send."""
    tokenizer = Tokenizer.from_directory(folder)
    turns = [Turn("colour", "What colour is the star?", "red")]
    ids, marks, _ = Writer(tokenizer).write(DEFAULT_SYSTEM, turns, 1, 1, False)
    content = [{"type": "image_url", "image_url": {"url": ""}}, {"type": "text", "text": turns[0].question}]
    prompt = render_text([{"role": "user", "content": content}])
    assert tokenizer.decode(ids) == f"{prompt}red<|im_end|>"
    assert tokenizer.decode([i for i, mark in zip(ids, marks, strict=True) if mark == 0]) == "red<|im_end|>"


def test_words_to_read_are_spelled_letter_by_letter(folder: Path) -> None:
    tokenizer = Tokenizer.from_directory(folder)
    assert len(tokenizer.encode("40817")) == 5
    assert len(tokenizer.encode("JUNGLE")) >= 5
