"""Learning, resuming and exporting on a tiny run. Knows nano.train's seams; measures no quality."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from kimi_serve.inputs.chat import render_text
from kimi_serve.inputs.config import load_checkpoint
from kimi_serve.inputs.tokenizer import Tokenizer
from nano import batches, export, start, vocabulary
from nano.batches import SEEING, Batch, Lesson, Source, Writer, stream
from nano.configuration import configuration
from nano.learning import learn
from nano.practice import Practice
from nano.questions import DEFAULT_SYSTEM, Turn
from nano.train import Run, prepare


@pytest.fixture(autouse=True)
def own_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "find", lambda names: [""])
    monkeypatch.setattr(start, "PICTURES", 12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare(tmp_path)
    return tmp_path


def begin(folder: Path) -> Run:
    return Run(folder, rate=1e-3, seed=0, init_from=None)


def two_batches(folder: Path) -> list[Batch]:
    source = Source(Tokenizer.from_directory(folder), 1, size=2, most_turns=2)
    return [source.batch("text"), source.batch("shapes")]


def step(run: Run, batch: Batch) -> None:
    learn(run.model, run.heads, run.optimizer, batch)


def test_saved_run_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    whole = begin(tmp_path)
    first, second = two_batches(tmp_path)
    step(whole, first)
    whole.save()
    step(whole, second)
    resumed = begin(tmp_path)
    step(resumed, second)
    for name, value in whole.both.state_dict().items():
        torch.testing.assert_close(resumed.both.state_dict()[name], value, rtol=0, atol=1e-6, msg=name)


def test_exported_weights_are_where_a_run_on_another_machine_begins(tmp_path: Path) -> None:
    first = begin(tmp_path / "first")
    first.save()
    export.export(tmp_path / "first", tmp_path / "published")
    second = Run(tmp_path / "second", rate=1e-3, seed=1, init_from=tmp_path / "published")
    for name, value in first.model.state_dict().items():
        rounded = value if name.endswith(export.BIAS) else value.bfloat16().float()
        torch.testing.assert_close(second.model.state_dict()[name], rounded, rtol=0, atol=0, msg=name)


def test_log_is_drawn_as_a_plot(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.note({"answers": 1.5, "seeing": 2.0})
    run.write_log(1.0, {"number": 0.5})
    run.write_log(2.0, {"number": 0.75})
    assert (tmp_path / "loss.png").stat().st_size > 10_000


def test_training_moves_the_correction_bias(tmp_path: Path) -> None:
    run = begin(tmp_path)
    step(run, two_batches(tmp_path)[1])
    bias = [b for n, b in run.model.named_buffers() if n.endswith("e_score_correction_bias")]
    assert bias
    assert all(b.abs().max() > 0 for b in bias)


def test_export_is_small_enough_to_bundle(tmp_path: Path) -> None:
    begin(tmp_path).save()
    assert export.export(tmp_path, tmp_path / "published") <= 25e6


def test_export_is_read_by_the_packages_own_config(tmp_path: Path) -> None:
    begin(tmp_path).save()
    export.export(tmp_path, tmp_path / "published")
    checkpoint = load_checkpoint(tmp_path / "published")
    tokenizer = Tokenizer.from_directory(tmp_path / "published")
    assert checkpoint.model.media_placeholder_token_id == tokenizer.special_id("<|media_pad|>")
    assert checkpoint.model.text.vocab_size == tokenizer.vocab_size


def test_training_reads_conversations_in_the_published_template(folder: Path) -> None:
    """What is trained is what the server will send."""
    tokenizer = Tokenizer.from_directory(folder)
    turns = [Turn("colour", "What colour is the star?", "red")]
    written = Writer(tokenizer).write(DEFAULT_SYSTEM, turns, 1, 1, False)
    ids, marks = written.ids, written.marks
    content = [{"type": "image_url", "image_url": {"url": ""}}, {"type": "text", "text": turns[0].question}]
    prompt = render_text([{"role": "user", "content": content}])
    assert tokenizer.decode(ids) == f"{prompt}red<|im_end|>"
    assert tokenizer.decode([i for i, mark in zip(ids, marks, strict=True) if mark == 0]) == "red<|im_end|>"


def test_words_to_read_are_spelled_letter_by_letter(folder: Path) -> None:
    tokenizer = Tokenizer.from_directory(folder)
    assert len(tokenizer.encode("40817")) == 5
    assert len(tokenizer.encode("JUNGLE")) >= 5


def test_a_word_keeps_its_row_in_another_vocabulary(tmp_path: Path) -> None:
    first = begin(tmp_path / "first")
    first.save()
    export.export(tmp_path / "first", tmp_path / "published")
    (tmp_path / "second").mkdir()
    vocabulary.write(tmp_path / "second" / "tiktoken.model", ["Zebra circle"])
    base = 256 + len(vocabulary.merges(["Zebra circle"]))
    (tmp_path / "second" / "tokenizer_config.json").write_text(json.dumps(vocabulary.config(base)))
    (tmp_path / "second" / "config.json").write_text(json.dumps(configuration(base + 256)))
    second = Run(tmp_path / "second", rate=1e-3, seed=1, init_from=tmp_path / "published")
    for token in (" circle", "a"):
        old, new = (
            run.model.language_model.model.embed_tokens.weight[Tokenizer.from_directory(run.folder).encode(token)[0]]
            for run in (first, second)
        )
        torch.testing.assert_close(new, old.bfloat16().float(), rtol=0, atol=0)


def test_lessons_follow_each_other(tmp_path: Path) -> None:
    prepare(tmp_path)
    lessons = (Lesson(0.5, 1.0, 0.0, (1, 0, 0, 0, 0, 0)), Lesson(1.0, 0.0, 1.0, (1, 0, 0, 0, 0, 0)))
    finished = iter((0.1, 0.9))
    first, second = itertools.islice(stream(str(tmp_path), 1, 2, lambda: next(finished), lessons), 2)
    assert (first.tasks, set(second.tasks)) == ([], {"copy"})


def test_seeing_asks_no_question(tmp_path: Path) -> None:
    prepare(tmp_path)
    batches = list(itertools.islice(stream(str(tmp_path), 1, 2, lambda: 0.5, SEEING), 2))
    assert all(len(batch.patches) and not batch.tasks for batch in batches)


def test_practice_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = Practice(begin(tmp_path), 1e-3)
    with torch.no_grad():
        first.guides.value.bias.fill_(0.5)
    first.run.step += 7
    first.save()
    second = Practice(begin(tmp_path), 1e-3)
    assert (second.begun, second.first, second.run.step) == (first.begun, first.first, first.first + 7)
    torch.testing.assert_close(second.guides.value.bias, first.guides.value.bias)
