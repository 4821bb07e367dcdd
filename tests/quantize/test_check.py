"""What --check, --prompts and --calibrate say and do."""

import base64
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kimi_serve import cli
from kimi_serve.errors import QuantizeError
from kimi_serve.inputs.chat import render
from kimi_serve.inputs.config import load_checkpoint
from kimi_serve.inputs.tokenizer import Tokenizer
from kimi_serve.quantize import command, prompts
from kimi_serve.quantize.check import Divergence, compared
from kimi_serve.quantize.options import Options
from kimi_serve.quantize.packing import dequantize, unpack
from kimi_serve.quantize.reading import Model
from kimi_serve.quantize.source import Weights
from kimi_serve.quantize.states import final_states

DOWN = "language_model.model.layers.0.mlp.down_proj.weight"


def picture(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").resize((width, height)).convert("RGB").save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    (tmp_path / "one.png").write_bytes(picture(60, 40))
    data = "data:image/png;base64," + base64.b64encode(picture(30, 30)).decode()
    asked = [
        {"type": "image_url", "image_url": {"url": "one.png"}},
        {"type": "image_url", "image_url": {"url": data}},
        {"type": "text", "text": "What is this?"},
    ]
    lines = [
        {"text": "A plain text."},
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "Two rings."}]},
        {"messages": [{"role": "user", "content": "And now?"}]},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return path


def test_conversations_are_rendered_as_requests_are_and_pictures_take_their_tokens(
    tiny: Path, conversations: Path
) -> None:
    checkpoint = load_checkpoint(tiny)
    read = prompts.read(conversations, "--prompts", tiny, checkpoint)
    tokenizer = Tokenizer.from_directory(tiny)
    assert list(read.prompts[0].ids) == tokenizer.encode("A plain text.")
    assert list(read.prompts[2].ids) == render([{"role": "user", "content": "And now?"}], tokenizer)
    placeholders = read.prompts[1].ids.count(checkpoint.model.media_placeholder_token_id)
    assert placeholders == 3 * 2 + 2 * 2  # 60x40 and 30x30 pixels, in cells of 28
    assert [item.grid.num_patches for item in read.prompts[1].pictures] == [6 * 4, 4 * 4]
    answer = [*tokenizer.encode("Two rings."), tokenizer.special_id("<|im_end|>")]
    assert list(read.prompts[1].ids[-read.prompts[1].answer :]) == answer
    where = compared(read.prompts[1], checkpoint.model.media_placeholder_token_id)
    assert where.nonzero()[:, 0].tolist() == [len(where) - 2 - k for k in reversed(range(len(answer)))]
    assert int(compared(read.prompts[2], 0).sum()) == len(read.prompts[2].ids)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1: "),
        ('{"text": 3}', r'line 1: expected \{"messages"'),
        ('{"messages": []}', "line 1: messages: is empty"),
        ('{"messages": [{"role": "king", "content": ""}]}', r"line 1: messages\[0\]\.role: 'king'"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "http://a/b"}]}]}',
            "nothing is",
        ),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "none.png"}]}]}', "none.png"),
        ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "line 1: a picture has no URL"),
        ("", "has 0 tokens; expected 1 to 16384"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tiny: Path, tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line)
    with pytest.raises(QuantizeError, match=f"--calibrate: .*{words}"):
        command.run(Options(tiny, tmp_path / "target", "int4", calibrate=path))
    assert not (tmp_path / "target.partial").exists()


def test_the_report_is_one_line_of_json_after_a_line_for_each_tensor(
    tiny: Path, tmp_path: Path, conversations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["quantize", str(tiny), str(tmp_path / "target"), "--scheme", "int4", "--check"]
    assert cli.main([*arguments, "--prompts", str(conversations)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    errors = {name: (float(relative), float(largest)) for relative, largest, name in map(str.split, lines)}
    assert len(errors) == report["quantized"] == 2 * 4 + 3 + 3 * 5
    stored = load_file(tmp_path / "target" / "model-00001-of-00001.safetensors")
    source = load_file(tiny / "model.safetensors")[DOWN].float()
    off = dequantize(unpack(stored[f"{DOWN}_packed"]), stored[f"{DOWN}_scale"]).float() - source
    assert errors[DOWN] == pytest.approx((float(off.norm() / source.norm()), float(off.abs().max())), rel=1e-3)
    assert report["relative_error_worst"] == pytest.approx(max(relative for relative, _ in errors.values()), rel=1e-3)
    assert 0.05 < report["relative_error_mean"] < 0.12
    assert report["bytes"] < report["source_bytes"]
    agreement = report["agreement"]
    assert agreement["kl"] > 0
    assert 0 < agreement["same_token"] <= 1


def test_a_complete_target_is_compared_and_not_made_again(tiny: Path, tmp_path: Path) -> None:
    options = Options(tiny, tmp_path / "target", "int4", check=True)
    first = command.run(options)
    when = (tmp_path / "target" / "config.json").stat().st_mtime_ns
    assert command.run(options) == first
    assert (tmp_path / "target" / "config.json").stat().st_mtime_ns == when


def test_int8_agrees_better_than_int4(tiny: Path, tmp_path: Path, conversations: Path) -> None:
    reports = {}
    for scheme in ("int4", "int8"):
        options = Options(tiny, tmp_path / scheme, scheme, check=True, prompts=conversations)
        reports[scheme] = json.loads(command.run(options))
    assert reports["int8"]["agreement"]["kl"] < reports["int4"]["agreement"]["kl"]
    assert reports["int8"]["relative_error_worst"] < 0.01


def test_divergence_in_blocks_equals_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(20, 1000, generator=generator) * 5
    made = source + torch.randn(20, 1000, generator=generator)
    divergence = Divergence(20)
    for start in range(0, 1000, 300):
        divergence.add(source[:, start : start + 300], made[:, start : start + 300], start)
    kl, same = divergence.result()
    p, q = source.double().log_softmax(-1), made.double().log_softmax(-1)
    torch.testing.assert_close(kl, (p.exp() * (p - q)).sum(-1), rtol=1e-5, atol=1e-6)
    assert same.equal(source.argmax(-1) == made.argmax(-1))
    assert not same.all()


def test_calibration_lowers_what_the_error_does_to_the_output(tiny: Path, tmp_path: Path, conversations: Path) -> None:
    """On the inputs of a layer: the embedding, whose columns are of very different size here."""
    checkpoint = load_checkpoint(tiny)
    read = prompts.read(conversations, "--calibrate", tiny, checkpoint)
    inputs: dict[str, list[torch.Tensor]] = {}
    with Weights(tiny) as weights:
        model = Model(weights, lambda name, x: inputs.setdefault(name, []).append(x))
        final_states(model, checkpoint, read.prompts)
        want = {name: model.tensor(name) for name in inputs if "layers.0.mlp" in name}
    errors = {}
    for calibrate in (None, conversations):
        target = tmp_path / f"made-{calibrate is not None}"
        command.run(Options(tiny, target, "int4", calibrate=calibrate))
        with Weights(target) as weights:
            made = Model(weights)
            errors[calibrate] = sum(
                float(((made.tensor(name) - weight) @ torch.cat(inputs[name]).T).square().sum())
                for name, weight in want.items()
            )
    assert errors[conversations] < errors[None]
    assert not (tmp_path / "made-True" / command.IMPORTANCE).exists()
