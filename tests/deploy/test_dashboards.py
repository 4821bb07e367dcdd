"""The dashboards' queries, asked of a real Prometheus that scrapes a gateway and an engine."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy import dashboards
from kimi_serve.launch.up import free_port
from kimi_serve.testing.serving import in_process
from tests.gateway.faults.conftest import eventually, opened
from tests.gateway.test_gateway import image, png

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "tests" / "golden" / "checkpoint"
FAKE = "kimi_serve.testing.fake_engine:create"
# Series of these are there once what they count has happened.
OF_EVENTS = (
    "refusals_total",
    "broken_streams_total",
    "clients_left_total",
    "fetch_failures_total",
    "scaled_images_total",
    "expanded_files_total",
    "expansion_duration_seconds",
    "ended_workers_total",
    'status="429"',
)


def panels() -> list[tuple[str, str]]:
    """What it shows, and one of its queries."""
    return [
        (f"{dashboard.name}: {panel.title}", query)
        for dashboard in dashboards.ALL
        for panel in dashboard.panels
        for query in panel.queries.values()
    ]


def test_the_files_are_what_is_written_from_the_table() -> None:
    found = {file.name: file.read_text("utf-8") for file in dashboards.FOLDER.iterdir()}
    assert found == {f"{one.name}.json": dashboards.rendered(one) for one in dashboards.ALL}, "run `make dashboards`"


def test_a_page_is_grafanas_form_with_a_place_for_each_panel() -> None:
    for file in dashboards.FOLDER.iterdir():
        page = json.loads(file.read_text("utf-8"))
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in page["panels"]]
        assert len(set(places)) == len(places) > 5
        assert all(
            panel["targets"] and x + panel["gridPos"]["w"] <= 24
            for panel, (x, _) in zip(page["panels"], places, strict=True)
        )
        assert page["uid"] == f"kimi-serve-{file.stem}"


@contextmanager
def prometheus(folder: Path, targets: dict[str, str]) -> Iterator[httpx.Client]:
    jobs = [{"job_name": name, "static_configs": [{"targets": [target]}]} for name, target in targets.items()]
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
    port = free_port()
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=log, stdout=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as http:
            yield http
    finally:
        process.terminate()
        process.wait(20)


def found(http: httpx.Client, query: str) -> list[Any]:
    answer = http.get("/api/v1/query", params={"query": query.replace("$__rate_interval", "1m")}).json()
    assert answer["status"] == "success", (query, answer)
    result: list[Any] = answer["data"]["result"]
    return result


def scraped(http: httpx.Client, jobs: int) -> bool:
    try:
        is_ready = http.get("/-/ready").status_code == 200
        return is_ready and len(found(http, "count_over_time(up[1m]) > 3 and up == 1")) == jobs
    except httpx.TransportError:
        return False


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed: no query is asked here")
def test_every_query_is_understood_and_the_gateways_return_data(tmp_path: Path) -> None:
    """vLLM's need a real engine: of those only the form is looked at here, and the names in test_observability.py."""
    with (
        in_process(FAKE, options={"max_model_len": 8192}) as engine,
        opened(CHECKPOINT, [engine.url], tmp_path / "gateway.log") as door,
        prometheus(tmp_path, {"gateway": door.url[7:], "vllm": engine.url[7:]}) as http,
    ):
        eventually(lambda: scraped(http, 2), 60)
        for _ in range(4):
            for content in ("hello", [image(png())]):
                body = {"messages": [{"role": "user", "content": content}], "stream": True}
                assert door.chat(**body).status_code == 200
            time.sleep(1)
        empty = [(title, query) for title, query in panels() if not found(http, query)]
    assert [one for one in empty if not may_be_empty(one[1])] == []


def may_be_empty(query: str) -> bool:
    return "vllm:" in query or any(name in query for name in OF_EVENTS)


def test_only_what_has_to_happen_first_may_be_empty() -> None:
    """So that the test above looks at most of the panels."""
    needed = [query for _, query in panels() if not may_be_empty(query)]
    assert len(needed) > len(panels()) // 2
    assert not [name for name in OF_EVENTS if not any(re.search(re.escape(name), query) for _, query in panels())]
