"""The chart's promises: security contexts, probes, time to leave, secrets by reference, networks."""

import copy
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from deploy.helm import chart
from kimi_serve.gateway.settings import Settings
from tests.deploy import kubernetes, policy

EXAMPLES = [pytest.param(chart.values_of(example), id=example.stem) for example in chart.EXAMPLES]
Object = dict[str, Any]


def of_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    return {one["metadata"]["name"]: one for one in objects if one["kind"] == kind}


@pytest.mark.parametrize("values", EXAMPLES)
def test_every_pod_keeps_the_policy(values: Object) -> None:
    assert policy.problems(chart.objects(values)) == []


def test_the_policy_sees_what_it_forbids() -> None:
    made = chart.objects({})
    gateway = of_kind(made, "Deployment")["demo-gateway"]["spec"]["template"]["spec"]
    gateway["securityContext"]["runAsNonRoot"] = False
    gateway["terminationGracePeriodSeconds"] = 10
    [container] = gateway["containers"]
    del container["livenessProbe"], container["resources"]["limits"]
    container["image"] = "gateway:latest"
    assert len(policy.problems(made)) == 5


@pytest.mark.parametrize("listen", [{"settle_s": 5, "grace_s": 120}, {"settle_s": 0.4, "grace_s": 900.5}])
def test_a_gateway_is_killed_later_than_it_drains(listen: dict[str, float]) -> None:
    made = chart.objects({"gateway": {"settings": {"listen": listen}, "preStopSeconds": 7}})
    pod = of_kind(made, "Deployment")["demo-gateway"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 7 + listen["settle_s"] + listen["grace_s"] + 10
    settings = tomllib.loads(of_kind(made, "ConfigMap")["demo-gateway"]["data"]["gateway.toml"])
    assert settings["listen"]["grace_s"] == listen["grace_s"]


def test_an_engine_leaves_later_than_gateways_stop_finding_it() -> None:
    """A name of a headless service lives 30 seconds in the DNS of most clusters."""
    engine = yaml.safe_load((chart.CHART / "values.yaml").read_text("utf-8"))["engine"]
    assert engine["preStopSeconds"] > 30 + Settings().replicas.refresh_s


def test_probes_wait_for_a_checkpoint_that_takes_long_to_load() -> None:
    made = chart.objects({"models": {"m": {"startupSeconds": 3605}}})
    [container] = of_kind(made, "Deployment")["demo-m"]["spec"]["template"]["spec"]["containers"]
    probe = container["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] >= 3605


def a_variable(made: list[Object]) -> None:
    engine(made)["env"] = [{"name": "VLLM_API_KEY", "value": "sk-1"}]


def an_option(made: list[Object]) -> None:
    engine(made)["args"].append("--api-key=sk-1")


def two_words(made: list[Object]) -> None:
    engine(made)["args"] += ["--hf-token", "hf_1"]


def a_setting(made: list[Object]) -> None:
    config = of_kind(made, "ConfigMap")["demo-gateway"]["data"]
    config["gateway.toml"] += '\n[upstream]\napi_key = "sk-1"\n'


def no_time_to_drain(made: list[Object]) -> None:
    config = of_kind(made, "ConfigMap")["demo-gateway"]["data"]
    config["gateway.toml"] = config["gateway.toml"].replace("grace_s = 120", "grace_s = 200")


def engine(made: list[Object]) -> Object:
    [container] = of_kind(made, "Deployment")["demo-kimi-vl-nano"]["spec"]["template"]["spec"]["containers"]
    found: Object = container
    return found


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (a_variable, "engine: VLLM_API_KEY is in plain text"),
        (an_option, "engine: --api-key is in plain text"),
        (two_words, "engine: --hf-token is in plain text"),
        (a_setting, "demo-gateway: upstream.api_key is a secret"),
        (no_time_to_drain, "Deployment demo-gateway: gateway: is killed before it has drained"),
    ],
)
def test_the_policy_sees_a_secret_in_plain_text_and_a_short_grace(
    spoil: Callable[[list[Object]], None], said: str
) -> None:
    made = copy.deepcopy(chart.objects({}))
    spoil(made)
    assert policy.problems(made) == [said]


def test_every_secret_setting_has_a_name_that_the_policy_knows() -> None:
    for setting in chart.gateway_settings()[1]:
        assert policy.SECRET_SETTING.search(setting.rpartition(".")[2]), setting


def test_only_gateways_reach_engines_and_engines_reach_nothing() -> None:
    made = of_kind(chart.objects({"models": {"one": {}, "wide": {"nodes": 2}}}), "NetworkPolicy")
    gateway = {"podSelector": {"matchLabels": made["demo-gateway"]["spec"]["podSelector"]["matchLabels"]}}
    for name in ("demo-one", "demo-wide"):
        assert made[name]["spec"]["policyTypes"] == ["Ingress", "Egress"]
        assert made[name]["spec"]["ingress"][0]["from"] == [gateway]
    assert len(made["demo-one"]["spec"]["ingress"]) == 1
    assert made["demo-one"]["spec"]["egress"] == []
    itself = {"podSelector": made["demo-wide"]["spec"]["podSelector"]}
    to_itself, dns = made["demo-wide"]["spec"]["egress"]
    assert to_itself == {"to": [itself]}
    assert {port["port"] for port in dns["ports"]} == {53}


@pytest.mark.parametrize("allow_remote", [True, False])
def test_a_gateway_reaches_the_internet_only_where_it_fetches_pictures(allow_remote: bool) -> None:
    values = {"gateway": {"settings": {"media": {"allow_remote": allow_remote}}}}
    egress = of_kind(chart.objects(values), "NetworkPolicy")["demo-gateway"]["spec"]["egress"]
    blocks = [peer["ipBlock"] for rule in egress for peer in rule.get("to", []) if "ipBlock" in peer]
    assert bool(blocks) == allow_remote
    assert all("10.0.0.0/8" in block["except"] for block in blocks if block["cidr"] == "0.0.0.0/0")


def test_every_pod_is_under_a_network_policy() -> None:
    downloads = {"download": {"repository": "a/b", "revision": "0" * 40}}
    made = chart.objects({"models": {"m": downloads, "wide": {"nodes": 2}}, "store": {"create": True}})
    selectors = [one["spec"]["podSelector"]["matchLabels"] for one in of_kind(made, "NetworkPolicy").values()]
    templates = [one["spec"]["template"] for one in made if one["kind"] in {"Deployment", "Job"}]
    templates += [template for one in made for template in kubernetes.embedded(one)]
    for template in templates:
        labels = template["metadata"]["labels"].items()
        assert any(selector.items() <= labels for selector in selectors), labels


def test_gateways_find_leaders_and_no_workers() -> None:
    made = chart.objects({"models": {"one": {}, "wide": {"nodes": 2}}})
    selector = of_kind(made, "Service")["demo-engines"]["spec"]["selector"].items()
    [group] = of_kind(made, "LeaderWorkerSet").values()
    leader, worker = kubernetes.embedded(group)
    assert selector <= leader["metadata"]["labels"].items()
    assert not selector <= worker["metadata"]["labels"].items()
    assert selector <= of_kind(made, "Deployment")["demo-one"]["spec"]["template"]["metadata"]["labels"].items()
    assert "--headless" in worker["spec"]["containers"][0]["args"]


def test_an_engines_own_selector_matches_no_other_model() -> None:
    made = of_kind(chart.objects({"models": {"one": {}, "two": {}}}), "Deployment")
    one, two = (made[f"demo-{name}"]["spec"]["selector"]["matchLabels"] for name in ("one", "two"))
    assert not one.items() <= made["demo-two"]["spec"]["template"]["metadata"]["labels"].items()
    assert not two.items() <= made["demo-one"]["spec"]["template"]["metadata"]["labels"].items()


def test_a_download_is_of_one_commit_and_awaited() -> None:
    revision = "c" * 40
    values = {
        "models": {"m": {"download": {"repository": "a/b", "revision": revision}}},
        "store": {"create": True},
    }
    made = chart.objects(values)
    [job] = of_kind(made, "Job").values()
    assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["a/b", revision, f"/models/m/{revision}"]
    for deployment in of_kind(made, "Deployment").values():
        [waits] = deployment["spec"]["template"]["spec"]["initContainers"]
        assert waits["command"][-1] == f"/models/m/{revision}"


def test_what_scales_itself_has_no_fixed_replicas() -> None:
    made = chart.objects(
        {
            "gateway": {"autoscaling": {"enabled": True}},
            "models": {"a": {"autoscaling": {"kind": "keda"}}, "b": {"autoscaling": {"kind": "hpa"}, "nodes": 2}},
        }
    )
    for one in [*of_kind(made, "Deployment").values(), *of_kind(made, "LeaderWorkerSet").values()]:
        assert "replicas" not in one["spec"]
    targets = [one["spec"]["scaleTargetRef"]["kind"] for one in made if "scaleTargetRef" in one.get("spec", {})]
    assert sorted(targets) == ["Deployment", "Deployment", "LeaderWorkerSet"]


def test_files_have_one_gateway_which_leaves_before_the_next_begins() -> None:
    made = chart.objects({"gateway": {"replicas": 1, "filesClaim": "kept"}})
    gateway = of_kind(made, "Deployment")["demo-gateway"]["spec"]
    assert (gateway["replicas"], gateway["strategy"]) == (1, {"type": "Recreate"})
    pod = gateway["template"]["spec"]
    [volume] = [volume["name"] for volume in pod["volumes"] if volume.get("persistentVolumeClaim")]
    [mount] = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == volume]
    settings = tomllib.loads(of_kind(made, "ConfigMap")["demo-gateway"]["data"]["gateway.toml"])
    assert settings["files"]["folder"].startswith(mount["mountPath"] + "/")
    assert "readOnly" not in mount
