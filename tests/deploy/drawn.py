"""Values drawn from values.schema.json. Knows JSON Schema as far as that file uses it; no chart."""

from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from jsonschema import Draft7Validator

Json = dict[str, Any]

# Where Kubernetes' own structures go, a schema cannot say what is drawn.
KUBERNETES = "#/$defs/kubernetes"
# Letters that no word for a secret is made of: those with a plain value are refused by the policy.
_VARIABLE = st.from_regex(r"[A-D]{1,6}_[0-9]", fullmatch=True)
_FROM_SECRET = {"secretKeyRef": {"name": "kept", "key": "key"}}
# What a program reads as a word of its own, so that random text would be refused there and rightly.
FORMS = {
    "quantity": st.sampled_from(["100m", "1", "2Gi", "512Mi"]),
    "name": st.from_regex(r"[a-z]{1,8}(-[a-z0-9]{1,5})?", fullmatch=True),
    # One of value and valueFrom, as Kubernetes demands; what is secret comes from a Secret.
    "env": st.lists(
        st.fixed_dictionaries({"name": _VARIABLE, "value": st.text("ab {}:", max_size=9)})
        | st.fixed_dictionaries({"name": _VARIABLE | st.just("HF_TOKEN"), "valueFrom": st.just(_FROM_SECRET)}),
        max_size=3,
        unique_by=lambda one: one["name"],
    ),
    "optionalName": st.just("") | st.from_regex(r"[a-z]{1,8}", fullmatch=True),
}


def values(schema: Json) -> SearchStrategy[Json]:
    return drawn(schema, schema)


def drawn(schema: Json, part: Json) -> SearchStrategy[Any]:
    if "$ref" in part:
        return referred(schema, part["$ref"])
    for choice in ("oneOf", "anyOf"):
        if choice in part:
            return st.one_of([drawn(schema, one) for one in part[choice]])
    if "const" in part:
        return st.just(part["const"])
    if "enum" in part:
        return st.sampled_from(part["enum"])
    return of_type(schema, part)


def referred(schema: Json, reference: str) -> SearchStrategy[Any]:
    name = reference.rpartition("/")[2]
    if reference == KUBERNETES:
        return st.just({})
    return FORMS[name] if name in FORMS else drawn(schema, schema["$defs"][name])


def of_type(schema: Json, part: Json) -> SearchStrategy[Any]:
    match part["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            low = part.get("minimum", part.get("exclusiveMinimum", -1) + 1)
            return st.integers(low, part.get("maximum", low + 10_000))
        case "number":
            low = part.get("minimum", part.get("exclusiveMinimum", 0))
            high = part.get("maximum", part.get("exclusiveMaximum", 10_000))
            return st.floats(low, high, exclude_min="exclusiveMinimum" in part, exclude_max="exclusiveMaximum" in part)
        case "string":
            return text(part)
        case "array":
            items = drawn(schema, part["items"])
            unique = str if part.get("uniqueItems") else None
            return st.lists(items, min_size=part.get("minItems", 0), max_size=3, unique_by=unique)
        case _:
            return of_object(schema, part)


def text(part: Json) -> SearchStrategy[str]:
    if "pattern" in part:
        return st.from_regex(part["pattern"].removesuffix("$") + r"\Z", fullmatch=True).filter(lambda s: len(s) < 40)
    return st.text(
        st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=part.get("minLength", 0), max_size=9
    )


def of_object(schema: Json, part: Json) -> SearchStrategy[Json]:
    known = {name: drawn(schema, one) for name, one in part.get("properties", {}).items()}
    required = set(part.get("required", []))
    fixed = st.fixed_dictionaries(
        {name: one for name, one in known.items() if name in required},
        optional={name: one for name, one in known.items() if name not in required},
    )
    more = part.get("additionalProperties")
    if not isinstance(more, dict):
        return fixed.map(lambda value: settled(part, value))
    refused = part["propertyNames"].get("not", {}).get("enum", [])
    names = st.from_regex(r"[a-z]{1,8}", fullmatch=True).filter(lambda name: name not in refused)
    return st.dictionaries(names, drawn(schema, more), max_size=2)


def settled(part: Json, value: Json) -> Json:
    """With what follows from it by the rules `if` and `then`."""
    for rule in part.get("allOf", []):
        if Draft7Validator(rule["if"]).is_valid(value):
            value = demanded(rule["then"], value)
    return value


def demanded(part: Json, value: Json) -> Json:
    return value | {
        name: one["const"] if "const" in one else demanded(one, value.get(name, {}))
        for name, one in part["properties"].items()
    }
