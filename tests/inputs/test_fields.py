"""Reading json objects: types that look alike are told apart, and errors name what they refuse."""

import pytest

from kimi_serve.errors import ConfigError
from kimi_serve.inputs.fields import Fields


def fields(**raw: object) -> Fields:
    return Fields("file", raw)


def test_section_extends_the_name_in_errors():
    with pytest.raises(ConfigError, match=r"^file\.a\.b: is missing$"):
        fields(a={}).section("a").value("b")


@pytest.mark.parametrize("value", [True, 1.0, "1", None, 0, 9])
def test_integer_is_a_whole_number_within_limits(value):
    with pytest.raises(ConfigError, match="expected a whole number of at least 1 and at most 8"):
        fields(a=value).integer("a", at_least=1, at_most=8)


def test_null_is_not_absent():
    with pytest.raises(ConfigError, match="None is not supported"):
        fields(a=None).integer("a", at_least=1, absent=5)
    assert fields().integer("a", at_least=1, absent=5) == 5


@pytest.mark.parametrize("value", [False, float("inf"), "x", 0])
def test_positive_is_a_finite_number_above_zero(value):
    with pytest.raises(ConfigError, match=r"^file\.a: "):
        fields(a=value).positive("a")


def test_only_tells_one_from_true():
    fields(a=1).only("a", 1)
    with pytest.raises(ConfigError, match="True is not supported; supported: 1"):
        fields(a=True).only("a", 1)


@pytest.mark.parametrize("value", [[1], [1, 2, 3], 2, [1, "2"], [0, 1]])
def test_pair_is_two_whole_numbers(value):
    with pytest.raises(ConfigError, match=r"^file\.a: "):
        fields(a=value).pair("a")
