"""Typed reading of one json object. Knows keys, types and limits; never what a key means."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kimi_serve.errors import ConfigError

# A null in a file is a value: "absent" is not the same.
_REQUIRED = object()


@dataclass(frozen=True, slots=True)
class Fields:
    """A json object and the name that errors call it by. Methods raise ConfigError naming key, value and limit."""

    name: str
    raw: Mapping[str, object]

    def has(self, key: str) -> bool:
        return key in self.raw

    def stated(self, key: str) -> bool:
        """Whether the key is there with a value other than null."""
        return self.raw.get(key) is not None

    def value(self, key: str, absent: object = _REQUIRED) -> object:
        value = self.raw.get(key, absent)
        if value is _REQUIRED:
            raise ConfigError(f"{self.name}.{key}: is missing")
        return value

    def section(self, key: str) -> "Fields":
        value = self.value(key)
        if not isinstance(value, Mapping):
            raise self._refuse(key, value, "an object")
        return Fields(f"{self.name}.{key}", value)

    def only(self, key: str, supported: object, absent: object = _REQUIRED) -> None:
        """Refuse every value but one."""
        value = self.value(key, absent)
        if value != supported or isinstance(value, bool) != isinstance(supported, bool):
            raise ConfigError(f"{self.name}.{key}: {value!r} is not supported; supported: {supported!r}")

    def one_of(self, key: str, supported: tuple[str, ...], absent: object = _REQUIRED) -> str:
        value = self.value(key, absent)
        if not isinstance(value, str) or value not in supported:
            choices = ", ".join(map(repr, supported))
            raise ConfigError(f"{self.name}.{key}: {value!r} is not supported; supported: {choices}")
        return value

    def boolean(self, key: str, absent: object = _REQUIRED) -> bool:
        value = self.value(key, absent)
        if not isinstance(value, bool):
            raise self._refuse(key, value, "true or false")
        return value

    def integer(
        self,
        key: str,
        *,
        at_least: int,
        at_most: int | None = None,
        multiple_of: int = 1,
        absent: object = _REQUIRED,
    ) -> int:
        value = self.value(key, absent)
        limits = f"a whole number of at least {at_least}"
        limits += f" and at most {at_most}" if at_most is not None else ""
        limits += f", a multiple of {multiple_of}" if multiple_of > 1 else ""
        if isinstance(value, bool) or not isinstance(value, int) or value < at_least or value % multiple_of:
            raise self._refuse(key, value, limits)
        if at_most is not None and value > at_most:
            raise self._refuse(key, value, limits)
        return value

    def optional_integer(self, key: str, at_most: int | None = None) -> int | None:
        return self.integer(key, at_least=0, at_most=at_most) if self.stated(key) else None

    def integers(self, key: str) -> tuple[int, ...]:
        """One whole number or a list of them; nothing if absent."""
        value = self.raw.get(key)
        values = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        return tuple(Fields(self.name, {key: each}).integer(key, at_least=0) for each in values)

    def pair(self, key: str, absent: object = _REQUIRED) -> tuple[int, int]:
        value = self.value(key, absent)
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise self._refuse(key, value, "two whole numbers")
        first, second = (Fields(self.name, {key: each}).integer(key, at_least=1) for each in value)
        return first, second

    def three_numbers(self, key: str, absent: object = _REQUIRED) -> tuple[float, float, float]:
        value = self.value(key, absent)
        if not isinstance(value, (list, tuple)) or len(value) != 3:
            raise self._refuse(key, value, "three numbers")
        first, second, third = (self._number(key, each) for each in value)
        return first, second, third

    def positive(self, key: str) -> float:
        number = self._number(key, self.value(key))
        if number <= 0:
            raise self._refuse(key, number, "a number above 0")
        return number

    def optional_number(self, key: str, *, at_least: float, at_most: float = math.inf) -> float | None:
        if not self.stated(key):
            return None
        number = self._number(key, self.raw[key])
        if not at_least <= number <= at_most:
            raise self._refuse(key, number, f"a number from {at_least} to {at_most}")
        return number

    def _number(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._refuse(key, value, "a number")
        return float(value)

    def _refuse(self, key: str, value: object, expected: str) -> ConfigError:
        return ConfigError(f"{self.name}.{key}: {value!r} is not supported; expected {expected}")
