"""The chart for values that nobody thought of, drawn from its own schema."""

import json
from typing import Any

from hypothesis import HealthCheck, Phase, assume, given, settings

from deploy.helm import chart
from tests.deploy import drawn, kubernetes, policy

SCHEMA = json.loads((chart.CHART / "values.schema.json").read_text("utf-8"))


@given(drawn.values(SCHEMA))
@settings(max_examples=40, suppress_health_check=list(HealthCheck), phases=[Phase.generate], report_multiple_bugs=False)
def test_what_the_schema_allows_makes_valid_and_safe_objects(values: dict[str, Any]) -> None:
    assume(asks_for_what_can_be(values))
    made = chart.objects(values)
    version = "1.33" if values.get("store", {}).get("image") else "1.30"
    assert [problem for one in made for problem in kubernetes.problems(one, version)] == []
    assert policy.problems(made) == []


def asks_for_what_can_be(values: dict[str, Any]) -> bool:
    """What is refused for two values that do not go together: test_chart.py has these cases."""
    models, store, gateway = (values.get(name, {}) for name in ("models", "store", "gateway"))
    counted, route = gateway.get("model", ""), gateway.get("httpRoute", {})
    downloads = [*models.values(), values.get("engine", {})]
    has_download = any(model.get("download", {}).get("repository") for model in downloads)
    has_claim = (store.get("existingClaim") or store.get("create")) and not store.get("image")
    is_routed = not route.get("enabled") or bool(route.get("parentRefs"))
    engines = {"": values.get("engine", {}), **models}
    shared = engines[""].get("adapters", {})
    names = {(name, model.get("servedName") or engines[""].get("servedName")) for name, model in engines.items()}
    own = {name: shared | model.get("adapters", {}) for name, model in engines.items()}
    is_apart = not any((served or name) in own[name] for name, served in names)
    return is_apart and (not counted or counted in models) and (not has_download or bool(has_claim)) and is_routed
