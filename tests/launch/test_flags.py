"""Reading what a person already said to vLLM."""

import pytest

from kimi_serve.launch import flags


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        (["--port", "9000"], {"--port": "9000"}),
        (["--port=9000"], {"--port": "9000"}),
        (["--max_model_len=8k"], {"--max-model-len": "8k"}),
        (["--enforce-eager", "--port", "1"], {"--enforce-eager": "", "--port": "1"}),
        (["-tp", "2"], {"--tensor-parallel-size": "2"}),
        (["--max-model-len", "-1"], {"--max-model-len": "-1"}),
        ([], {}),
    ],
)
def test_flags_are_read_as_vllm_reads_them(arguments: list[str], read: dict[str, str]) -> None:
    assert flags.given(arguments) == read


def test_the_last_of_two_equal_flags_counts() -> None:
    assert flags.given(["--port", "1", "--port", "2"]) == {"--port": "2"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("4096", 4096), ("8k", 8000), ("8K", 8192), ("1.5M", 1572864), ("auto", None), ("-1", None), ("", None)],
)
def test_numbers_may_carry_a_unit(text: str, value: int | None) -> None:
    assert flags.number({"--x": text}, "--x") == value
