"""What the gateway measures, as Prometheus reads it. Knows names, units and labels; decides nothing.

Every label is bounded: routes, codes, statuses and stages are ours, tenants are the busiest ones, and replicas are
those there are at the moment of a scrape.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

from kimi_serve import __version__
from kimi_serve.gateway.counting import Counter, Histogram
from kimi_serve.gateway.expansion_metrics import ExpansionMetrics
from kimi_serve.gateway.key_metrics import KeyMetrics
from kimi_serve.gateway.replica_metrics import ReplicaMetrics
from kimi_serve.gateway.replicas.replica import ReplicaSnapshot
from kimi_serve.gateway.streaming import GAP_BOUNDS_S
from kimi_serve.gateway.tenant_labels import TenantLabels

MOST_TENANTS: Final = 100
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKENS: Final = (64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144)
_IMAGES: Final = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_BYTES: Final = tuple(4**power for power in range(5, 15))  # 1 KiB to 256 MiB


class Metrics:
    def __init__(self, tenants: TenantLabels | None = None) -> None:
        self.registry = CollectorRegistry()
        self._tenants = tenants or TenantLabels(MOST_TENANTS)
        self._count()
        self._time_and_size()
        self._gauge()
        self._replicas = ReplicaMetrics(self.registry)
        self.keys = KeyMetrics(self.registry)
        self.expansion = ExpansionMetrics(self.registry)
        build = self._new_gauge("build_info", "1; its labels say what runs", "version", "python")
        build.labels(__version__, platform.python_version()).set(1)
        ProcessCollector(registry=self.registry)

    def _new_gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"kimi_serve_{name}", text, labels, registry=self.registry)

    def _count(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"kimi_serve_{name}", text, labels, self.registry)

        self.requests = counter("requests", "Requests answered, by route and status", "route", "status", "tenant")
        self.refusals = counter("refusals", "Requests refused, by the error's code", "code")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens admitted, images included", "tenant")
        self.image_tokens = counter("image_tokens", "Image tokens admitted", "tenant")
        self.images = counter("images", "Images admitted", "tenant")
        self.completion_tokens = counter("completion_tokens", "Tokens generated, by the engine's usage", "tenant")
        self.reserved_tokens = counter("reserved_completion_tokens", "Tokens set aside for answers", "tenant")
        self.of_tenants = (
            *(self.requests, self.prompt_tokens, self.image_tokens, self.images),
            *(self.completion_tokens, self.reserved_tokens),
        )
        self.formats = counter("images_measured", "Images whose header was read, by format", "format")
        self.pixels = counter("image_pixels", "Pixels of the images whose header was read")
        self.miscounted = counter("miscounted_prompts", "Answers whose prompt_tokens differ from the gateway's count")
        self.miscount = counter("miscounted_tokens", "How far these counts were from the engine's")
        self.expected_cached = counter(
            "expected_cached_tokens", "Prompt tokens sent to an engine that had seen them, by the gateway's memory"
        )
        self.cached = counter("cached_tokens", "Prompt tokens that engines had in their cache, where they say so")
        self.retries = counter("retries", "Requests sent to a second engine")
        self.broken_streams = counter("broken_streams", "Streams that ended with an error event", "code")
        self.left = counter("clients_left", "Clients that closed their connection before the end, by stage", "stage")
        self.stalled = counter("stalled_clients", "Connections ended because their client took no byte of its answer")
        self.elided_images = counter("elided_images", "Images sent by name, as the engine held them")
        self.elided_bytes = counter("elided_bytes", "Bytes of images that were not sent for it")
        self.elision_misses = counter(
            "elision_misses", "Requests sent again with their images: the engine had forgotten"
        )
        self.scaled_images = counter("scaled_images", "Images scaled down, by what asked for it", "by")
        self.left_out_images = counter("left_out_images", "Images of a history replaced by a text, for fit")
        self.spared_tokens = counter("spared_prompt_tokens", "Prompt tokens that detail and fit took away")
        self.scale_hits = counter("scale_cache_hits", "Scaled images that were at hand from an earlier request")
        self.scale_failures = counter("scale_failures", "Images that could not be scaled down, by code", "code")
        self.fetched_bytes = counter("fetched_bytes", "Bytes of pictures fetched from URLs")
        self.fetch_failures = counter("fetch_failures", "Pictures that could not be fetched, by code", "code")
        self.uploaded_files = counter("uploaded_files", "Files that clients left here")
        self.uploaded_bytes = counter("uploaded_file_bytes", "Bytes of the files that clients left here")
        self.batch_lines = counter("batch_lines", "Lines of batches that have their answer, by outcome", "outcome")
        self.batch_retries = counter("batch_line_retries", "Times that a batch's line was told to come back, or failed")

    def _time_and_size(self) -> None:
        def histogram(name: str, text: str, *labels: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
            return Histogram(f"kimi_serve_{name}", text, labels, buckets, self.registry)

        self.request_seconds = histogram(
            "request_duration_seconds", "From a request's first byte to the end of its answer", "route"
        )
        self.body_seconds = histogram("body_duration_seconds", "Reading a request's body")
        self.queue_seconds = histogram("queue_duration_seconds", "Waiting for a slot on an engine")
        self.fetch_seconds = histogram("fetch_duration_seconds", "Fetching one remote picture")
        self.scale_seconds = histogram(
            "scale_duration_seconds", "Scaling one image down, the wait for a process included"
        )
        self.cancel_seconds = histogram(
            "cancel_duration_seconds", "From the moment a client is seen to have left until its request holds nothing"
        )
        self.ttft_seconds = histogram("time_to_first_token_seconds", "From a request's first byte to its first token")
        self.gap_seconds = histogram("inter_token_seconds", "Between two tokens of a stream", buckets=GAP_BOUNDS_S)
        self.body_bytes = histogram("request_body_bytes", "Size of a request's body", buckets=_BYTES)
        self.request_tokens = histogram("request_prompt_tokens", "Prompt tokens of a request", buckets=_TOKENS)
        self.request_images = histogram("request_images", "Images of a request", buckets=_IMAGES)

    def _gauge(self) -> None:
        gauge = self._new_gauge
        self.waiting = gauge("waiting_requests", "Requests that wait for an engine", "priority")
        self.waiting_cost = gauge("waiting_cost_tokens", "Work that waits for an engine, in tokens, images weighted")
        self.oldest = gauge("oldest_waiting_seconds", "Age of the oldest request that waits", "priority")
        self.outstanding = gauge("outstanding_requests", "Requests at engines")
        self.outstanding_cost = gauge("outstanding_cost_tokens", "Work at engines, in tokens, images weighted")
        self.capacity = gauge("capacity_requests", "Requests that may be at the ready engines at once")
        self.capacity_cost = gauge("capacity_cost_tokens", "Work that may be at the ready engines at once")
        self.bytes_in_flight = gauge("in_flight_bytes", "Bodies in memory")
        self.connections = gauge("connections", "Connections of clients")
        self.ready_replicas = gauge("ready_replicas", "Engines that are ready")
        self.files = gauge("files", "Files that are kept")
        self.file_bytes = gauge("file_bytes", "Bytes of all files that are kept, each counted by itself")
        self.batches = gauge("running_batches", "Batches that have not ended")
        self.draining = gauge("draining", "1 while the gateway is shutting down")

    def tenant(self, name: str) -> str:
        """The label of a tenant."""
        return self._tenants.label(name)

    def worked(self, tenant: str, tokens: int) -> None:
        """By which tenants are ranked."""
        self._tenants.worked(tenant, tokens)

    def measure(self, replicas: Sequence[ReplicaSnapshot]) -> None:
        """Before a scrape: the engines of this moment, and the tenants that have earned a label."""
        self._replicas.seen = tuple(replicas)
        lost = set(self._tenants.rank())
        for metric in self.of_tenants if lost else ():
            for values in metric.series():
                if values[-1] in lost:  # the tenant is the last label of all
                    metric.remove(*values)
