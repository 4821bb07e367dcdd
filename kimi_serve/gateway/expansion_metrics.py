"""What is measured of documents and videos. Knows names and labels; reads no file."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from kimi_serve.gateway.counting import Counter, Histogram

_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class ExpansionMetrics:
    """`kind` is document or video."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, label: str) -> Counter:
            return Counter(f"kimi_serve_{name}", text, (label,), registry)

        self.files = counter("expanded_files", "Documents and videos that became pictures", "kind")
        self.images = counter("expanded_images", "Pages and frames that they became", "kind")
        self.kept = counter("kept_files", "Documents and videos whose pictures an earlier turn had made", "kind")
        self.ended = counter("ended_workers", "Processes that did not get to the end of their file", "reason")
        text = "Reading one document or video, from the wait for a process on"
        self.seconds = Histogram("kimi_serve_expansion_duration_seconds", text, ("kind",), _SECONDS, registry)
        self.busy = Gauge("kimi_serve_busy_workers", "Processes that read a file", registry=registry)
