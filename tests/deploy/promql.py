"""Which metrics and labels a query names: PromQL as far as ours use it. Knows text; asks no Prometheus."""

import re
from collections.abc import Iterator, Mapping, Set

_WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "bool", "offset"}
_SELECTED = re.compile(r"(?<![\w:$.])([A-Za-z_:][\w:]*)(?![\w:])(\s*\{[^}]*\})?(?!\s*\()")
_GROUPED = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")


def problems(query: str, exported: Mapping[str, Set[str]], everywhere: Set[str]) -> list[str]:
    """Metrics that are not `exported` (name -> labels), labels that one of them has not; all have `everywhere`."""
    found = [f"{metric}: not exported" for metric, _ in named(query) if metric not in exported]
    for metric, labels in named(query):
        known = exported.get(metric, labels) | everywhere
        found += [f"{metric}: no label {label}" for label in sorted(labels - known)]
    return found


def named(query: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Each metric with the labels that the query asks of it, in `{...}`, `by`, `without`, `on` and the like."""
    plain = re.sub(r"\[[^\]]*\]", "", re.sub(r'"[^"]*"', '""', query))
    yield from selected(_GROUPED.sub("", plain))
    for clause in _GROUPED.finditer(plain):
        labels = frozenset(re.findall(r"\w+", clause[2]))
        over = aggregated(plain, clause) if clause[1] in {"by", "without"} else plain
        for metric, _ in selected(_GROUPED.sub("", over)):
            yield metric, labels


def grouped_by(query: str) -> set[str] | None:
    """Labels that its result has, of the outermost `by`; None: all, as nothing is aggregated."""
    clauses = [clause for clause in _GROUPED.finditer(query) if clause[1] == "by"]
    if clauses:
        return set(re.findall(r"\w+", clauses[0][2]))
    return set() if re.search(r"\b(sum|min|max|avg|count|histogram_quantile)\b", query) else None


def selected(plain: str) -> Iterator[tuple[str, frozenset[str]]]:
    for found in _SELECTED.finditer(plain):
        if found[1] not in _WORDS:
            yield found[1], frozenset(re.findall(r"(\w+)\s*(?:=|!)", found[2] or ""))


def aggregated(plain: str, clause: re.Match[str]) -> str:
    """What `by (...)` is about: `sum by (x) (THIS)` or `sum(THIS) by (x)`."""
    after = plain[clause.end() :].lstrip()
    if after.startswith("("):
        return balanced(after, "(")
    return balanced(plain[: clause.start()].rstrip()[::-1], ")")[::-1]


def balanced(text: str, opening: str) -> str:
    """From its first bracket to the one that closes it."""
    assert text.startswith(opening), text
    depth = 0
    for place, letter in enumerate(text):
        if letter in "()":
            depth += 1 if letter == opening else -1
        if depth == 0:
            return text[: place + 1]
    raise AssertionError(f"a bracket is not closed: {text}")
