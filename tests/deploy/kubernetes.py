"""Kubernetes' own schemas, as kubernetes-validate packs them, and ours of custom resources. Knows objects; no chart."""

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

VERSIONS = ("1.30", "1.33", "1.37")  # the oldest that the chart takes, image volumes, the newest packed

Object = dict[str, Any]


def problems(one: Object, version: str) -> list[str]:
    """Sentences; unknown fields are problems too."""
    found = [f"{_name(one)}: {_where(error.absolute_path)}: {error.message}" for error in _errors(one, version)]
    for template in embedded(one):
        found += problems({"apiVersion": "v1", "kind": "PodTemplate", "template": template}, version)
    return found


def embedded(one: Object) -> Iterator[Object]:
    """Pod templates inside of custom resources."""
    if one["kind"] == "LeaderWorkerSet":
        of = one["spec"]["leaderWorkerTemplate"]
        yield from (of["leaderTemplate"], of["workerTemplate"])


def pods(one: Object) -> list[Object]:
    """Every pod spec that an object makes."""
    if one["kind"] in {"Deployment", "Job"}:
        return [one["spec"]["template"]["spec"]]
    return [template["spec"] for template in embedded(one)]


def _errors(one: Object, version: str) -> Iterator[Any]:
    return _validator(one["apiVersion"], one["kind"], version).iter_errors(one)


@cache
def _validator(api: str, kind: str, version: str) -> Draft202012Validator:
    custom = _custom().get(f"{api}/{kind}")
    if custom is not None:
        return Draft202012Validator(custom)
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    group, _, number = api.rpartition("/")
    name = f"{group.partition('.')[0]}-{number}" if group else number
    schema = json.loads((folder / f"{kind.lower()}-{name}.json").read_text("utf-8"))
    return Draft202012Validator(schema, registry=_definitions(version))


@cache
def _definitions(version: str) -> Registry[Any]:
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    text = (folder / "_definitions.json").read_text("utf-8")
    return Resource.from_contents(json.loads(text)) @ Registry()


@cache
def _custom() -> dict[str, Object]:
    loaded: dict[str, Object] = yaml.safe_load((Path(__file__).parent / "custom_resources.yaml").read_text("utf-8"))
    return loaded


def _name(one: Object) -> str:
    return f"{one['kind']} {one.get('metadata', {}).get('name', '')}"


def _where(path: Any) -> str:
    return ".".join(map(str, path))
