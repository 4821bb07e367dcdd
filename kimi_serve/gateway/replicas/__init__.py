"""The engines behind the gateway: which there are, how they are, and which one a request goes to."""

from kimi_serve.gateway.replicas.breaker import BreakerLimits
from kimi_serve.gateway.replicas.choose import ReplicaView, RequestView, choose
from kimi_serve.gateway.replicas.discovery import Discovery, DnsNames, StaticList
from kimi_serve.gateway.replicas.fleet import Fleet
from kimi_serve.gateway.replicas.health import HealthTimes
from kimi_serve.gateway.replicas.prompt import Picture, Prompt, Text, read_prompt
from kimi_serve.gateway.replicas.replica import Call, Replica, ReplicaLimits, ReplicaSnapshot
from kimi_serve.gateway.replicas.retries import RetryBudget

__all__ = [
    "BreakerLimits", "Call", "Discovery", "DnsNames", "Fleet", "HealthTimes", "Picture", "Prompt", "Replica",
    "ReplicaLimits", "ReplicaSnapshot", "ReplicaView", "RequestView", "RetryBudget", "StaticList", "Text", "choose",
    "read_prompt",
]  # fmt: skip
