"""What every object of this project promises about security and leaving. Knows Kubernetes' fields; no chart."""

import re
import tomllib
from collections.abc import Iterator
from math import ceil
from typing import Any

from tests.deploy import kubernetes

Object = dict[str, Any]

PRIVATE = (
    "RoleBinding",
    "Role",
    "ClusterRole",
    "ClusterRoleBinding",
    "Secret",
    "Namespace",
    "CustomResourceDefinition",
)

SECRET_VARIABLE = re.compile(r"KEY|TOKEN|PASSWORD|SECRET", re.IGNORECASE)
# Variables of that look which hold a path or a public name.
NO_SECRETS = frozenset({"KIMI_SERVE_SECRETS"})
SECRET_OPTION = re.compile(r"--(api-key|hf-token)(=|$)")
SECRET_SETTING = re.compile(r"(^|_)(key|token|password|secret|redis|postgres|single)$")


def problems(objects: list[Object]) -> list[str]:
    found = [f"{one['kind']} {one['metadata']['name']}" for one in objects if one["kind"] in PRIVATE]
    found += twice(objects) + secrets(objects)
    settings = gateway_settings(objects)
    for one in objects:
        for pod in kubernetes.pods(one):
            where = f"{one['kind']} {one['metadata']['name']}"
            found += [f"{where}: {problem}" for problem in of_pod(pod, settings, is_job=one["kind"] == "Job")]
    return found


def gateway_settings(objects: list[Object]) -> dict[str, Object]:
    """What each ConfigMap's gateway.toml says, by the ConfigMap's name."""
    maps = [one for one in objects if one["kind"] == "ConfigMap" and "gateway.toml" in one["data"]]
    return {one["metadata"]["name"]: tomllib.loads(one["data"]["gateway.toml"]) for one in maps}


def secrets(objects: list[Object]) -> list[str]:
    """Secrets in plain text: in variables, in command lines, in ConfigMaps."""
    found = []
    for one in objects:
        for pod in kubernetes.pods(one):
            for container in [*pod.get("initContainers", []), *pod["containers"]]:
                found += [f"{container['name']}: {problem}" for problem in plain_secrets(container)]
    for name, settings in gateway_settings(objects).items():
        found += [
            f"{name}: {section}.{key} is a secret"
            for section, fields in settings.items()
            if isinstance(fields, dict)
            for key, value in fields.items()
            if SECRET_SETTING.search(key) and isinstance(value, str)
        ]
    return found


def plain_secrets(container: Object) -> Iterator[str]:
    for variable in container.get("env", []):
        if "value" in variable and variable["name"] not in NO_SECRETS and SECRET_VARIABLE.search(variable["name"]):
            yield f"{variable['name']} is in plain text"
    for word in [*container.get("command", []), *container.get("args", [])]:
        if SECRET_OPTION.match(word):
            yield f"{word.partition('=')[0]} is in plain text"


def twice(objects: list[Object]) -> list[str]:
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    return [f"twice: {name}" for name in {name for name in names if names.count(name) > 1}]


def of_pod(pod: Object, settings: dict[str, Object], *, is_job: bool) -> Iterator[str]:
    expected = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    yield from missing("pod's securityContext", pod["securityContext"], expected)
    yield from missing("pod", pod, {"automountServiceAccountToken": False, "enableServiceLinks": False})
    if any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield "shares something with its host"
    for volume in pod["volumes"]:
        if "hostPath" in volume:
            yield f"volume {volume['name']} is its host's"
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']} has no size"
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        yield from of_container(container)
    if not is_job:
        for container in pod["containers"]:
            yield from of_server(pod, container, settings)


def of_container(container: Object) -> Iterator[str]:
    name = container["name"]
    expected = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    yield from missing(f"{name}'s securityContext", container["securityContext"], expected)
    if container["image"].endswith(":latest") or ":" not in container["image"].rpartition("/")[2]:
        yield f"{name}: {container['image']} may be another image tomorrow"
    if not {"cpu", "memory"} <= container["resources"].get("requests", {}).keys():
        yield f"{name}: asks for no CPU or memory"
    if "memory" not in container["resources"].get("limits", {}):
        yield f"{name}: has no limit on memory"


def of_server(pod: Object, container: Object, settings: dict[str, Object]) -> Iterator[str]:
    """A container that answers requests: it is asked how it is, and has time to leave."""
    name = container["name"]
    if "ports" in container:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe not in container:
                yield f"{name}: no {probe}"
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    if pod["terminationGracePeriodSeconds"] <= sleep + drain(pod, container, settings):
        yield f"{name}: is killed before it has drained"


def drain(pod: Object, container: Object, settings: dict[str, Object]) -> int:
    """Seconds that requests get: in an engine's own command line, in the ConfigMap that a gateway's pod mounts."""
    if "gateway" in container["args"]:
        [name] = [volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume]
        listen = settings[name]["listen"]
        return ceil(listen["settle_s"] + listen["grace_s"])
    prefix = "--shutdown-timeout="
    return max(int(arg.removeprefix(prefix)) for arg in container["args"] if arg.startswith(prefix))


def missing(what: str, found: Object, expected: Object) -> Iterator[str]:
    for key, value in expected.items():
        if found.get(key) != value:
            yield f"{what}: {key} is {found.get(key)!r}, expected {value!r}"
