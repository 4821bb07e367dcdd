"""What every object of this project promises about security and leaving. Knows Kubernetes' fields; no chart."""

from collections.abc import Iterator
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


def problems(objects: list[Object]) -> list[str]:
    found = [f"{one['kind']} {one['metadata']['name']}" for one in objects if one["kind"] in PRIVATE]
    found += twice(objects)
    for one in objects:
        for pod in kubernetes.pods(one):
            where = f"{one['kind']} {one['metadata']['name']}"
            found += [f"{where}: {problem}" for problem in of_pod(pod, is_job=one["kind"] == "Job")]
    return found


def twice(objects: list[Object]) -> list[str]:
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    return [f"twice: {name}" for name in {name for name in names if names.count(name) > 1}]


def of_pod(pod: Object, *, is_job: bool) -> Iterator[str]:
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
            yield from of_server(pod, container)


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


def of_server(pod: Object, container: Object) -> Iterator[str]:
    """A container that answers requests: it is asked how it is, and has time to leave."""
    name = container["name"]
    if "ports" in container:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe not in container:
                yield f"{name}: no {probe}"
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    if pod["terminationGracePeriodSeconds"] <= sleep + drain(container):
        yield f"{name}: is killed before it has drained"


def drain(container: Object) -> int:
    """Seconds that the engine's own command line gives to requests; the gateway's stand in its settings."""
    prefix = "--shutdown-timeout="
    return max([int(arg.removeprefix(prefix)) for arg in container["args"] if arg.startswith(prefix)], default=0)


def missing(what: str, found: Object, expected: Object) -> Iterator[str]:
    for key, value in expected.items():
        if found.get(key) != value:
            yield f"{what}: {key} is {found.get(key)!r}, expected {value!r}"
