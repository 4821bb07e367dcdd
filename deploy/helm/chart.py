"""What is written from the chart: README, the gateway's part of the schema, golden renders. Knows files and Helm.

python deploy/helm/chart.py        # or `make chart`; the tests fail while something here is not current
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from helm_python import Chart

from kimi_serve.gateway.settings import Settings

ROOT: Final = Path(__file__).resolve().parents[2]
CHART: Final = ROOT / "deploy" / "helm" / "kimi-serve"
EXAMPLES: Final = tuple(sorted((CHART / "ci").glob("*.yaml")))
GOLDEN: Final = ROOT / "tests" / "deploy" / "golden"

LOADER: Final = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader

# Settings that the templates write themselves, because they follow from the chart's other values.
OWNED: Final = {
    "listen": {"host", "port"},
    "replicas": {"urls", "dns"},
    "keys": {"file", "environment", "sqlite"},
    "files": {"folder"},
}


def main() -> None:
    texts = {CHART / "README.md": readme(), CHART / "values.schema.json": schema()}
    texts |= {golden(example): rendered(values_of(example)) for example in EXAMPLES}
    for old in set(GOLDEN.glob("*.yaml")) - texts.keys():
        old.unlink()
    for path, text in texts.items():
        changed = not path.exists() or path.read_text("utf-8") != text
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        print(f"{path.relative_to(ROOT)}: {'changed' if changed else 'as before'}")


def golden(example: Path) -> Path:
    return GOLDEN / example.name


def values_of(example: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(example.read_text("utf-8")) or {}
    return loaded


def templates(values: dict[str, Any], chart: Path = CHART) -> dict[str, str]:
    """Template name -> what Helm makes of it; those that make nothing are left out."""
    return dict(_templates(json.dumps(values), chart))


@cache
def _templates(values: str, chart: Path) -> dict[str, str]:
    with Chart.load(chart) as loaded:
        loaded.validate_schema(json.loads(values))
        made = loaded.render(json.loads(values), name="demo", namespace="serving")
    return {path.rpartition("/")[2]: text for path, text in sorted(made.items()) if text.strip()}


def rendered(values: dict[str, Any]) -> str:
    made = templates(values)
    made.pop("NOTES.txt", None)
    return "".join(f"---\n# {name}\n{text.strip().removeprefix('---').strip()}\n" for name, text in made.items())


def objects(values: dict[str, Any], chart: Path = CHART) -> list[dict[str, Any]]:
    """The Kubernetes objects."""
    made = templates(values, chart)
    made.pop("NOTES.txt", None)
    return [one for text in made.values() for one in yaml.load_all(text, Loader=LOADER) if one]


def schema() -> str:
    """values.schema.json with the gateway's settings as they are now: of these, secrets can only be referred to."""
    read = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    settings, secrets = gateway_settings()
    read["$defs"] |= {"settings": settings, "secretSetting": {"enum": secrets}}
    return json.dumps(read, indent=2) + "\n"


def gateway_settings() -> tuple[dict[str, Any], list[str]]:
    """A schema of gateway.toml without what the chart owns and without secrets; the names of these."""
    whole = Settings.model_json_schema()
    sections, secrets = {}, []
    for section, reference in whole["properties"].items():
        if "$ref" not in reference:
            continue  # checkpoint: follows from the models
        fields = whole["$defs"][reference["$ref"].rpartition("/")[2]]["properties"]
        plain = {}
        for name, field in fields.items():
            if is_secret(field):
                secrets.append(f"{section}.{name}")
            elif name not in OWNED.get(section, ()):
                plain[name] = bare(field)
        sections[section] = {"type": "object", "additionalProperties": False, "properties": plain}
    sections["listen"]["required"] = ["grace_s", "settle_s"]  # a pod's grace time follows from them
    required = {"type": "object", "additionalProperties": False, "required": ["listen"], "properties": sections}
    return required, sorted(secrets)


def is_secret(field: dict[str, Any]) -> bool:
    return any(form.get("writeOnly") for form in forms(field))


def forms(field: dict[str, Any]) -> list[dict[str, Any]]:
    """What a value may be; TOML has no null."""
    return [form for form in field.get("anyOf", [field]) if form.get("type") != "null"]


def bare(field: dict[str, Any]) -> dict[str, Any]:
    """Types and limits only: defaults have their home in the settings."""
    kept = [{k: v for k, v in form.items() if k not in {"default", "title", "format"}} for form in forms(field)]
    if "items" in kept[0]:
        kept[0]["items"] = bare(kept[0]["items"]) if "anyOf" not in kept[0]["items"] else {"type": "string"}
    only = kept[0] if len(kept) == 1 else {"anyOf": kept}
    return {"description": field["description"], **only} if "description" in field else only


def readme() -> str:
    rows = "\n".join(f"| `{path}` | `{default}` | {text} |" for path, default, text in documented())
    examples = "\n".join(f"| [{example.name}](ci/{example.name}) | {first_comment(example)} |" for example in EXAMPLES)
    return (CHART / "README.md.gotmpl").read_text("utf-8").replace("@EXAMPLES@", examples).replace("@VALUES@", rows)


def first_comment(example: Path) -> str:
    return example.read_text("utf-8").splitlines()[0].removeprefix("# ")


def documented() -> Iterator[tuple[str, str, str]]:
    """Path, default and description of every value: the comment above its line."""
    path: list[str] = []
    comment: list[str] = []
    for line in (CHART / "values.yaml").read_text("utf-8").splitlines():
        if found := re.match(r"( *)([A-Za-z][\w-]*):(?: +(.*))?$", line):
            depth = len(found[1]) // 2
            path = [*path[:depth], found[2]]
            if found[3] is not None or comment:
                yield ".".join(path), found[3] or "", " ".join(comment)
            comment = []
        elif line.lstrip().startswith("# "):
            comment.append(line.strip().removeprefix("# "))
        else:
            comment = []


if __name__ == "__main__":
    main()
