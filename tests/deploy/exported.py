"""What can be scraped, with its labels: of the gateway from its registry, of vLLM from its source. Runs neither."""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from kimi_serve.gateway.metrics import Metrics

Exported = dict[str, frozenset[str]]  # name of a series -> labels that the program itself gives it

_ENDINGS = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"], "info": [""]}
# What a scrape adds: Prometheus itself, and its operator's ServiceMonitor and PodMonitor.
SCRAPED = frozenset({"job", "instance", "namespace", "service", "pod"})
PROMETHEUS: Exported = {"up": frozenset()}


@cache
def ours() -> Exported:
    registry = Metrics().registry
    found: Exported = {}
    for collector in registry._collector_to_names:
        own = collector._labelnames if isinstance(collector, MetricWrapperBase) else None
        for family in collector.collect():
            labels = getattr(family, "_labelnames", ()) if own is None else own
            found |= series(family.name, family.type, frozenset(labels))
    return found


@cache
def theirs() -> Exported:
    """What vLLM's own logger makes for every engine, read from its source: importing it takes a minute."""
    vllm = importlib.util.find_spec("vllm")
    assert vllm is not None
    assert vllm.origin is not None
    tree = ast.parse((Path(vllm.origin).parent / "v1" / "metrics" / "loggers.py").read_text("utf-8"))
    common = next(labels for target, labels in assigned(tree) if target == "labelnames")
    found: Exported = {}
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr.endswith("_cls"):
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            if isinstance(name := given.get("name"), ast.Constant):
                kind = call.func.attr.removeprefix("_").removesuffix("_cls")
                found |= series(str(name.value), kind, labels_of(given["labelnames"], common))
    return found


def series(name: str, kind: str, labels: frozenset[str]) -> Exported:
    return {
        f"{name}{ending}": labels | {"le"} if ending == "_bucket" else labels
        for ending in _ENDINGS[kind]
    }  # fmt: skip


def assigned(tree: ast.AST) -> Iterator[tuple[str, frozenset[str]]]:
    """Lists of strings that a name is set to."""
    for one in ast.walk(tree):
        if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name) and isinstance(one.value, ast.List):
            yield one.targets[0].id, labels_of(one.value, frozenset())


def labels_of(expression: ast.expr, common: frozenset[str]) -> frozenset[str]:
    """Of `labelnames`, `labelnames + ["reason"]` or a list."""
    written = {str(one.value) for one in ast.walk(expression) if isinstance(one, ast.Constant)}
    names = {one.id for one in ast.walk(expression) if isinstance(one, ast.Name)}
    return frozenset(written) | (common if "labelnames" in names else frozenset())
