"""A tower's rows over HTTP in place of pictures: the same answers, the example of the documentation, every refusal."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine import golden
from tests.stack import pictures
from tests.stack.served import Server

DOC = (Path(__file__).parents[2] / "docs" / "embeddings.md").read_text("utf-8")
HIDDEN = 256  # of the golden model


def rows_of(name: str) -> list[torch.Tensor]:
    """The reference's, of each picture of a case."""
    case = golden.cases()[name]
    return list(torch.from_numpy(case.arrays()["proj_rows"]).split(case.image_tokens))


def torch_base64(tensor: torch.Tensor) -> str:
    written = io.BytesIO()
    torch.save(tensor, written)
    return base64.b64encode(written.getvalue()).decode()


def numpy_base64(tensor: torch.Tensor) -> str:
    written = io.BytesIO()
    np.save(written, tensor.numpy())
    return base64.b64encode(written.getvalue()).decode()


def part(content: object) -> dict[str, object]:
    return {"type": "image_embeds", "image_embeds": content}


FORMS = {
    "torch": lambda rows, grid: part(torch_base64(rows)),
    "numpy": lambda rows, grid: part(numpy_base64(rows)),
    "with its grid": lambda rows, grid: part({"image_embeds": torch_base64(rows), "image_grid_hws": grid}),
    "with its grid as a tensor": lambda rows, grid: part(
        {"image_embeds": numpy_base64(rows), "image_grid_hws": torch_base64(torch.tensor([grid]))}
    ),
    "without a type": lambda rows, grid: {"image_embeds": torch_base64(rows)},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["c2_one_image_exact", "c5_three_images"])
def test_the_answer_is_the_reference_implementations(
    server: Server, golden_cases: dict[str, dict[str, object]], name: str, form: str
) -> None:
    case = golden_cases[name]
    grids = golden.cases()[name].arrays()["image_grid_hws"].tolist()
    given = iter([FORMS[form](rows, grid) for rows, grid in zip(rows_of(name), grids, strict=True)])
    turns = [{**turn, "content": _with_rows(turn["content"], given)} for turn in case["messages"]]
    options = {"ignore_eos": True, "max_tokens": len(case["greedy_ids"]), "return_token_ids": True}
    reply = server.conversation(turns, **options)
    assert reply.status == 200, reply.body
    assert reply.body["choices"][0]["token_ids"] == case["greedy_ids"]
    assert reply.prompt_tokens == case["n_prompt_tokens"]


def _with_rows(content: object, given: object) -> object:
    if isinstance(content, str):
        return content
    return [next(given) if one["type"] == "image" else one for one in content]


def test_the_documentations_example_answers(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [rows] = rows_of("c2_one_image_exact")
    torch.save(rows, tmp_path / "rows.pt")
    [example] = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    for written, real in (("rows.pt", str(tmp_path / "rows.pt")), ("http://127.0.0.1:8000", server.url)):
        assert written in example
        example = example.replace(written, real)
    exec(example, {})
    picture = pictures.part(pictures.golden("images/c2_exact.png"))
    told = server.chat([picture, {"type": "text", "text": "What is this?"}], max_tokens=16)
    assert capsys.readouterr().out == told.text + "\n"


GOOD = torch.zeros(6, HIDDEN)
BROKEN = {
    "not base64": (part("!!!"), "messages[0].content[1]"),
    "not a tensor": (part(base64.b64encode(b"no tensor at all").decode()), "messages[0].content[1]"),
    "half a tensor": (part(torch_base64(GOOD)[:400]), "messages[0].content[1]"),
    "half an array": (part(numpy_base64(GOOD)[:400]), "messages[0].content[1]"),
    "a dictionary": (part(torch_base64({"a": GOOD})), "image_embeds"),
    "no axes": (part(torch_base64(torch.tensor(1.0))), "image_embeds"),
    "too narrow": (
        part(torch_base64(GOOD[:, :-1])),
        "image_embeds[0]: rows of 255 numbers are not supported; expected 256",
    ),
    "too many": (part(torch_base64(torch.zeros(5000, HIDDEN))), "image_embeds[0]: 5000 rows are not supported"),
    "integers": (part(torch_base64(GOOD.long())), "image_embeds[0]: int64 is not supported"),
    "not finite": (part(torch_base64(GOOD / 0)), "image_embeds[0]: row 0 is not finite in float32"),
    "another grid": (part({"image_embeds": torch_base64(GOOD), "image_grid_hws": [4, 4]}), "do not match its grid"),
    "a grid alone": (part({"image_grid_hws": [4, 6]}), "image_embeds: is missing"),
    "another field": (
        part({"image_embeds": torch_base64(GOOD), "grid": torch_base64(GOOD)}),
        "grid",
    ),
    "nothing": (part(None), "image_embeds"),
    "a list": (part([1, 2]), "image_embeds: list is not supported; expected a tensor in base64"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_rows_that_cannot_be_meant_are_refused(server: Server, name: str) -> None:
    given, said = BROKEN[name]
    reply = server.chat([{"type": "text", "text": "x"}, given])
    assert reply.status == 400, reply.body
    assert said in reply.error
    assert server.is_healthy()


def test_a_picture_beside_rows_is_refused(server: Server) -> None:
    reply = server.chat([part(torch_base64(GOOD)), pictures.part(pictures.plain(56, 56))])
    assert reply.status == 400, reply.body
    assert server.is_healthy()


def test_two_pictures_rows_of_different_widths_are_refused(server: Server) -> None:
    reply = server.chat([part(torch_base64(GOOD)), part(torch_base64(GOOD[:2, :7]))])
    assert reply.status == 400, reply.body
    assert "image_embeds[1]: rows of 7 numbers" in reply.error
    assert server.is_healthy()
