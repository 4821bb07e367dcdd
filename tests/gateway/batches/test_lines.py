"""What a batch's input may look like: every refusal names its line, and nothing was asked."""

import json
from pathlib import Path

import pytest

from kimi_serve.gateway.batches.lines import MOST_PROBLEMS, Limits, body_of, read

LIMITS = Limits(lines=5, line_bytes=1000)
ENDPOINT = "/v1/chat/completions"


def line(custom_id: object = "a", **changes: object) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": {"x": 1}, **changes})


def found(tmp_path: Path, text: str | bytes) -> tuple[list[str], list[tuple[str, int | None]]]:
    file = tmp_path / "in.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    lines, problems = read(file, ENDPOINT, LIMITS)
    return [one.custom_id for one in lines], [(problem.code, problem.line) for problem in problems]


def test_lines_are_found_whatever_ends_them(tmp_path: Path) -> None:
    assert found(tmp_path, f"{line('a')}\n\n  \n{line('b')}\r\n{line('ü')}") == (["a", "b", "ü"], [])


def test_a_body_is_read_again_byte_for_byte(tmp_path: Path) -> None:
    raw = '{ "n": 1.50, "t": "\\u0048i" }'
    head = f'{{"custom_id": "b", "method": "POST", "url": "{ENDPOINT}", "body": '
    file = tmp_path / "in.jsonl"
    file.write_text(f"{line('ä')}\n{head}{raw}}}\n")
    (_, second), problems = read(file, ENDPOINT, LIMITS)
    assert problems == []
    assert body_of(file, second.start, second.length) == raw.encode()


WRONG = {
    "no JSON": ("{", "invalid_json_line"),
    "not an object": ("[1]", "invalid_json_line"),
    "no body": ('{"custom_id": "b"}', "invalid_json_line"),
    "deep": ("[" * 900, "invalid_json_line"),
    "no id": (line(None), "invalid_custom_id"),
    "a number for an id": (line(5), "invalid_custom_id"),
    "no text for an id": (line(""), "invalid_custom_id"),
    "an id of another line": (line("first"), "duplicate_custom_id"),
    "another method": (line(method="GET"), "invalid_method"),
    "another endpoint": (line(url="/v1/embeddings"), "mismatched_url"),
    "a list for a body": (line(body=[1]), "invalid_body"),
    "a stream": (line(body={"stream": True}), "invalid_body"),
    "long": (line(body={"x": "y" * 1000}), "line_too_long"),
}


@pytest.mark.parametrize(("text", "code"), WRONG.values(), ids=WRONG)
def test_a_wrong_line_is_named_and_the_others_are_looked_at(tmp_path: Path, text: str, code: str) -> None:
    assert found(tmp_path, f"{line('first')}\n\n{text}\n{line('last')}\n")[1] == [(code, 3)]


def test_bytes_that_are_no_text_are_a_wrong_line(tmp_path: Path) -> None:
    assert found(tmp_path, line().encode().replace(b'"x"', b'"\xff"'))[1] == [("invalid_json_line", 1)]


def test_an_empty_file_and_one_that_is_too_long_are_refused(tmp_path: Path) -> None:
    assert found(tmp_path, "\n \n")[1] == [("empty_file", None)]
    many = "\n".join(line(str(number)) for number in range(6))
    assert found(tmp_path, many)[1] == [("too_many_lines", None)]


def test_no_more_problems_are_told_than_a_person_reads(tmp_path: Path) -> None:
    assert len(found(tmp_path, "x\n" * 5000)[1]) == MOST_PROBLEMS
