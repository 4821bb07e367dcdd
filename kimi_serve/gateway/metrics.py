"""What the gateway measures, as Prometheus reads it. Knows names and labels; decides nothing.

A tenant's name is a label only while there are few of them: later ones count under "other".
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

MOST_TENANTS = 100
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_GAPS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 5)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._tenants: set[str] = set()
        r = self.registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"kimi_serve_{name}", text, labels, registry=r)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"kimi_serve_{name}", text, buckets=buckets, registry=r)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"kimi_serve_{name}", text, labels, registry=r)

        self.requests = counter("requests", "Requests answered, by route and status", "route", "status", "tenant")
        self.refusals = counter("refusals", "Requests refused, by the error's code", "code")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens admitted, images included", "tenant")
        self.image_tokens = counter("image_tokens", "Image tokens admitted", "tenant")
        self.images = counter("images", "Images admitted", "tenant")
        self.completion_tokens = counter("completion_tokens", "Tokens generated, by the engine's usage", "tenant")
        self.miscounted = counter("miscounted_prompts", "Answers whose prompt_tokens differ from the gateway's count")
        self.retries = counter("retries", "Requests sent to a second engine")
        self.broken_streams = counter("broken_streams", "Streams that ended with an error event", "code")
        self.left = counter("clients_left", "Clients that closed their connection before the end")
        self.fetched_bytes = counter("fetched_bytes", "Bytes of pictures fetched from URLs")
        self.request_seconds = histogram("request_seconds", "From a request's first byte to the end of its answer")
        self.queue_seconds = histogram("queue_seconds", "Waiting for a slot on an engine")
        self.fetch_seconds = histogram("fetch_seconds", "Fetching a request's remote pictures")
        self.ttft_seconds = histogram("ttft_seconds", "From a request's first byte to its first token")
        self.gap_seconds = histogram("inter_token_seconds", "Mean time between the tokens of a stream", _GAPS)
        self.waiting = gauge("waiting_requests", "Requests that wait for an engine", "priority")
        self.oldest = gauge("oldest_waiting_seconds", "Age of the oldest request that waits", "priority")
        self.outstanding = gauge("outstanding_requests", "Requests at engines")
        self.outstanding_cost = gauge("outstanding_cost_tokens", "Work at engines, in tokens, images weighted")
        self.bytes_in_flight = gauge("bytes_in_flight", "Bodies in memory")
        self.ready_replicas = gauge("ready_replicas", "Engines that are ready")
        self.replica_ready = gauge("replica_ready", "1 where the engine is ready", "replica")
        self.replica_outstanding = gauge("replica_outstanding_tokens", "Work at the engine, in tokens", "replica")
        self.replica_ejections = gauge("replica_ejections", "Times that the engine was ejected", "replica")

    def tenant(self, name: str) -> str:
        """The label of a tenant."""
        if name not in self._tenants:
            if len(self._tenants) >= MOST_TENANTS:
                return "other"
            self._tenants.add(name)
        return name
