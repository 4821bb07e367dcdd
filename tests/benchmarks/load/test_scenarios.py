"""What a scenario may say, and what is said about one that may not."""

from pathlib import Path

import pytest

from benchmarks.load import scenarios
from benchmarks.load.scenarios import ScenarioError

TOLD = """
[one]
about = "a test"
{rates}
seconds = 10
limits = {{ ttft_s = 1.0, tpot_s = 0.1 }}
parts = [{{ name = "chat", {part} }}]
"""


def read(tmp_path: Path, rates: str = "rate = 1.0", part: str = 'kind = "text"') -> scenarios.Scenario:
    file = tmp_path / "mine.toml"
    file.write_text(TOLD.format(rates=rates, part=part))
    return scenarios.read("one", file)


def test_the_bundled_scenarios_are_those_that_are_promised() -> None:
    promised = "chat, image, images, document, video, agents, mixed, cancellations, overload, soak"
    assert ", ".join(scenarios.names()) == promised
    read = {name: scenarios.read(name) for name in scenarios.names()}
    assert read["overload"].of_capacity == 2.0
    assert (read["soak"].of_capacity, read["soak"].seconds) == (0.7, 1800)
    assert all(part.cancel is not None and part.cancel.share == 0.3 for part in read["cancellations"].parts)
    assert {part.kind for scenario in read.values() for part in scenario.parts} == {
        "text",
        "images",
        "document",
        "video",
        "history",
    }


@pytest.mark.parametrize(
    ("rates", "part", "said"),
    [
        ("rate = 1.0\nof_capacity = 2.0", 'kind = "text"', "exactly one of the two is expected"),
        ("", 'kind = "text"', "exactly one of the two is expected"),
        ("rate = 0.0", 'kind = "text"', "rate: Input should be greater than 0"),
        ("rate = 1.0", 'kind = "text", colour = "red"', "parts.0.text.colour: Extra inputs are not permitted"),
        ("rate = 1.0", 'kind = "sound"', "parts.0: Input tag 'sound'"),
        ("rate = 1.0", 'kind = "text", words = [9, 2]', "the least, 9, is more than the most, 2"),
        ("rate = 1.0", 'kind = "images", sizes = [[4, 99999]]', "sizes.0.0"),
        (
            "rate = 1.0",
            'kind = "history", sessions = 2, images = 3, reuse = 0.8, size = [64, 64]',
            "0.8 of 3 images is no whole number",
        ),
    ],
)
def test_a_malformed_scenario_is_refused_with_the_field(tmp_path: Path, rates: str, part: str, said: str) -> None:
    with pytest.raises(ScenarioError, match=r"mine\.toml, one: ") as refused:
        read(tmp_path, rates, part)
    assert said in str(refused.value)


def test_a_name_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    read(tmp_path)
    with pytest.raises(ScenarioError, match="'two' is not one of one"):
        scenarios.read("two", tmp_path / "mine.toml")


def test_a_share_of_capacity_wants_a_capacity(tmp_path: Path) -> None:
    scenario = read(tmp_path, "of_capacity = 2.0")
    assert scenario.offered(1.5) == 3.0
    with pytest.raises(ScenarioError, match=r"benchmarks\.load capacity"):
        scenario.offered(None)
