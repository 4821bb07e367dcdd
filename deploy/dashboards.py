"""Writes observability/dashboards/*.json, for Grafana. Knows queries, units and places on a page; starts nothing.

    python -m deploy.dashboards       # `make dashboards`

A panel is a line here: what it shows, its unit, and queries by the legend of their lines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent / "observability" / "dashboards"
SOURCE: Final = {"type": "prometheus", "uid": "${source}"}
WIDTH, HEIGHT, COLUMNS = 8, 8, 3
REQUESTS, TOKENS, SECONDS, BYTES, SHARE, COUNT = "reqps", "short", "s", "bytes", "percentunit", "none"


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    unit: str
    queries: dict[str, str]  # legend, in which {{label}} is a label's value -> PromQL


@dataclass(frozen=True, slots=True)
class Dashboard:
    name: str
    title: str
    panels: Sequence[Panel]


def rate(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}[$__rate_interval]))"


def quantiles(metric: str) -> dict[str, str]:
    by_bucket = rate(f"{metric}_bucket", "le")
    return {f"p{share * 100:g}": f"histogram_quantile({share}, {by_bucket})" for share in (0.5, 0.9, 0.99)}


def ratio(part: str, whole: str) -> str:
    return f"{rate(part)} / {rate(whole)}"


def ours(name: str) -> str:
    return f"kimi_serve_{name}"


def theirs(name: str) -> str:
    return f"vllm:{name}"


OVERVIEW: Final = Dashboard(
    "overview",
    "Kimi-VL: overview",
    [
        Panel("Engines that are ready", COUNT, {"{{instance}}": ours("ready_replicas")}),
        Panel("Requests by status", REQUESTS, {"{{status}}": rate(ours("requests_total"), "status")}),
        Panel("Refusals by code", REQUESTS, {"{{code}}": rate(ours("refusals_total"), "code")}),
        Panel("Time to the first token", SECONDS, quantiles(ours("time_to_first_token_seconds"))),
        Panel("Between two tokens", SECONDS, quantiles(ours("inter_token_seconds"))),
        Panel("Wait for an engine", SECONDS, quantiles(ours("queue_duration_seconds"))),
        Panel("Requests in line", COUNT, {"{{priority}}": f"sum by (priority) ({ours('waiting_requests')})"}),
        Panel(
            "Work at engines",
            SHARE,
            {"of capacity": f"sum({ours('outstanding_cost_tokens')}) / sum({ours('capacity_cost_tokens')})"},
        ),
        Panel("Work in line, tokens", TOKENS, {"waits": f"sum({ours('waiting_cost_tokens')})"}),
        Panel(
            "Moved, broken, left",
            REQUESTS,
            {
                "sent to a second engine": rate(ours("retries_total")),
                "streams ended by {{code}}": rate(ours("broken_streams_total"), "code"),
                "clients left: {{stage}}": rate(ours("clients_left_total"), "stage"),
            },
        ),
        Panel(
            "Tokens a second",
            TOKENS,
            {"of prompts": rate(ours("prompt_tokens_total")), "of answers": rate(ours("completion_tokens_total"))},
        ),
        Panel(
            "Gateways",
            BYTES,
            {
                "resident, {{instance}}": "process_resident_memory_bytes * on (instance, job) kimi_serve_build_info",
                "bodies, {{instance}}": ours("in_flight_bytes"),
            },
        ),
    ],
)

MULTIMODAL: Final = Dashboard(
    "multimodal",
    "Kimi-VL: pictures, documents, videos",
    [
        Panel("Images a second", COUNT, {"admitted": rate(ours("images_total"))}),
        Panel(
            "Share of images in prompts",
            SHARE,
            {"of tokens": ratio(ours("image_tokens_total"), ours("prompt_tokens_total"))},
        ),
        Panel("Images of a request", COUNT, quantiles(ours("request_images"))),
        Panel("Formats", COUNT, {"{{format}}": rate(ours("images_measured_total"), "format")}),
        Panel("Pixels a second", TOKENS, {"measured": rate(ours("image_pixels_total"))}),
        Panel("Fetching", SECONDS, quantiles(ours("fetch_duration_seconds"))),
        Panel("Fetches that failed", REQUESTS, {"{{code}}": rate(ours("fetch_failures_total"), "code")}),
        Panel(
            "Sent by name alone",
            COUNT,
            {"images": rate(ours("elided_images_total")), "misses": rate(ours("elision_misses_total"))},
        ),
        Panel("Bytes that were not sent", BYTES, {"a second": rate(ours("elided_bytes_total"))}),
        Panel("Scaled down", COUNT, {"by {{by}}": rate(ours("scaled_images_total"), "by")}),
        Panel("Scaling one image", SECONDS, quantiles(ours("scale_duration_seconds"))),
        Panel("Documents and videos", COUNT, {"{{kind}}": rate(ours("expanded_files_total"), "kind")}),
        Panel("Reading one", SECONDS, quantiles(ours("expansion_duration_seconds"))),
        Panel("Readers that did not end well", COUNT, {"{{reason}}": rate(ours("ended_workers_total"), "reason")}),
        Panel(
            "Processed images that vLLM had",
            SHARE,
            {"of those asked for": ratio(theirs("mm_cache_hits_total"), theirs("mm_cache_queries_total"))},
        ),
    ],
)

TENANTS: Final = Dashboard(
    "tenants",
    "Kimi-VL: tenants",
    [
        Panel("Requests", REQUESTS, {"{{tenant}}": rate(ours("requests_total"), "tenant")}),
        Panel("Prompt tokens a second", TOKENS, {"{{tenant}}": rate(ours("prompt_tokens_total"), "tenant")}),
        Panel("Image tokens a second", TOKENS, {"{{tenant}}": rate(ours("image_tokens_total"), "tenant")}),
        Panel("Answer tokens a second", TOKENS, {"{{tenant}}": rate(ours("completion_tokens_total"), "tenant")}),
        Panel(
            "Set aside for answers", TOKENS, {"{{tenant}}": rate(ours("reserved_completion_tokens_total"), "tenant")}
        ),
        Panel("Refused, by tenant", REQUESTS, {"{{tenant}}": rate(ours('requests_total{status="429"}'), "tenant")}),
        Panel("The store of keys", COUNT, {"{{instance}}": ours("key_store_up")}),
        Panel("Let in by a last known record", REQUESTS, {"keys": rate(ours("stale_keys_total"))}),
        Panel("Limits counted in Redis", COUNT, {"{{instance}}": ours("limits_shared")}),
        Panel("Limits counted here instead", REQUESTS, {"requests": rate(ours("limit_fallbacks_total"))}),
    ],
)

ENGINE: Final = Dashboard(
    "engine",
    "Kimi-VL: engines",
    [
        Panel(
            "Requests at engines, by the gateways",
            COUNT,
            {"{{replica}}": f"sum by (replica) ({ours('replica_outstanding_requests')})"},
        ),
        Panel(
            "Work at engines, tokens",
            TOKENS,
            {"{{replica}}": f"sum by (replica) ({ours('replica_outstanding_tokens')})"},
        ),
        Panel("Ready", COUNT, {"{{replica}}": f"max by (replica) ({ours('replica_ready')})"}),
        Panel("Outcomes", REQUESTS, {"{{replica}} {{outcome}}": rate(ours("replica_calls_total"), "replica, outcome")}),
        Panel(
            "Ejections",
            COUNT,
            {"{{replica}}": f"sum by (replica) (increase({ours('replica_ejections_total')}[$__rate_interval]))"},
        ),
        Panel(
            "Running and waiting in vLLM",
            COUNT,
            {
                "running, {{instance}}": theirs("num_requests_running"),
                "waiting, {{instance}}": theirs("num_requests_waiting"),
            },
        ),
        Panel("Key-value cache", SHARE, {"{{instance}}": theirs("kv_cache_usage_perc")}),
        Panel("Preemptions", COUNT, {"{{instance}}": rate(theirs("num_preemptions_total"), "instance")}),
        Panel(
            "Tokens computed a second",
            TOKENS,
            {
                "prompt, {{instance}}": rate(theirs("prompt_tokens_total"), "instance"),
                "answer, {{instance}}": rate(theirs("generation_tokens_total"), "instance"),
            },
        ),
        Panel(
            "Prefix cache",
            SHARE,
            {"hits": ratio(theirs("prefix_cache_hits_total"), theirs("prefix_cache_queries_total"))},
        ),
        Panel("vLLM: prefill", SECONDS, quantiles(theirs("request_prefill_time_seconds"))),
        Panel("vLLM: decode", SECONDS, quantiles(theirs("request_decode_time_seconds"))),
        Panel("vLLM: its own queue", SECONDS, quantiles(theirs("request_queue_time_seconds"))),
    ],
)

ALL: Final = (OVERVIEW, MULTIMODAL, TENANTS, ENGINE)


def rendered(dashboard: Dashboard) -> str:
    """A panel a line, so that a change of one is a line of a diff."""
    panels = ",\n".join(json.dumps(_panel(number, panel)) for number, panel in enumerate(dashboard.panels))
    return f'{json.dumps(_page(dashboard))[:-1]}, "panels": [\n{panels}\n]}}\n'


def _page(dashboard: Dashboard) -> dict[str, Any]:
    source = {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus", "hide": 0}
    return {
        "uid": f"kimi-serve-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["kimi-serve"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [source]},
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + place), "expr": query, "legendFormat": legend, "datasource": SOURCE}
        for place, (legend, query) in enumerate(panel.queries.items())
    ]
    place = {"w": WIDTH, "h": HEIGHT, "x": WIDTH * (number % COLUMNS), "y": HEIGHT * (number // COLUMNS)}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }


def main() -> None:
    for dashboard in ALL:
        file = FOLDER / f"{dashboard.name}.json"
        file.write_text(rendered(dashboard), "utf-8")
        print(f"{file.name}: {len(dashboard.panels)} panels")


if __name__ == "__main__":
    main()
