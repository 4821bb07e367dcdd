"""What the gateway says of itself in OpenAPI, held against what it does: requests are drawn from the document."""

import os
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.gateway.conftest import Front

EXAMPLES = int(os.environ.get("KIMI_SERVE_FUZZ", "280")) // 14  # over seven routes, in two ways
OPERATIONS = {
    "/livez": "get",
    "/metrics": "get",
    "/readyz": "get",
    "/tokenize": "post",
    "/v1/chat/completions": "post",
    "/v1/completions": "post",
    "/v1/messages": "post",
    "/v1/messages/count_tokens": "post",
    "/v1/models": "get",
    "/v1/responses": "post",
    "/v1/responses/input_tokens": "post",
}
KEPT = {  # files and batches
    "/v1/batches": {"get", "post"},
    "/v1/batches/{batch_id}": {"get"},
    "/v1/batches/{batch_id}/cancel": {"post"},
    "/v1/files": {"get", "post"},
    "/v1/files/{file_id}": {"delete", "get"},
    "/v1/files/{file_id}/content": {"get"},
}
POSTS = [path for path, method in OPERATIONS.items() if method == "post"]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    negative_data_rejection,
    allow_header_conformance,
]


@pytest.fixture(scope="module")
def document(alone: Front) -> dict[str, Any]:
    found: dict[str, Any] = alone.http.get("/openapi.json").json()
    return found


def test_every_route_is_in_the_document(document: dict[str, Any]) -> None:
    told = {path: set(methods) for path, methods in document["paths"].items()}
    assert told == {path: {method} for path, method in OPERATIONS.items()} | KEPT


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["as told", "otherwise"])
@pytest.mark.parametrize("path", [*POSTS, "/v1/batches"])
def test_what_is_drawn_from_the_document_is_answered_as_it_says(
    alone: Front, document: dict[str, Any], path: str, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_dict(document)
    operation = schema[path]["post"]
    with requests.Session() as session:
        session.trust_env = False

        @seed(20261122)
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(mode))
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(alone.url, session=session, checks=CHECKS, timeout=30)

        check()
    alone.assert_idle()


@pytest.mark.parametrize(
    "path", [*(path for path, method in OPERATIONS.items() if method == "get"), "/v1/files", "/v1/batches"]
)
def test_what_is_read_is_as_the_document_says(alone: Front, document: dict[str, Any], path: str) -> None:
    operation = schemathesis.openapi.from_dict(document)[path]["get"]
    with requests.Session() as session:
        session.trust_env = False
        operation.Case().call_and_validate(alone.url, session=session, checks=CHECKS, timeout=30)


@pytest.mark.parametrize("path", POSTS)
def test_the_documents_own_examples_are_answered(alone: Front, document: dict[str, Any], path: str) -> None:
    told = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    examples = [one for schema in told.get("anyOf", [told]) for one in schema["examples"]]
    assert examples
    for body in examples:
        answered = alone.http.post(path, json=body)
        assert answered.status_code == 200, answered.text
        is_stream = answered.headers["content-type"].startswith("text/event-stream")
        assert is_stream == body.get("stream", False)
        schemathesis.openapi.from_dict(document)[path]["post"].validate_response(answered)


def test_files_and_batches_are_answered_as_the_document_says(alone: Front, document: dict[str, Any]) -> None:
    schema = schemathesis.openapi.from_dict(document)
    form: dict[str, Any] = {"data": {"purpose": "batch"}, "files": {"file": ("x", b"{}")}}
    file = alone.http.post("/v1/files", **form)
    order = {"input_file_id": file.json()["id"], "endpoint": "/v1/completions", "completion_window": "1h"}
    batch = alone.http.post("/v1/batches", json=order)
    for path, named in (("/v1/files/{file_id}", file), ("/v1/batches/{batch_id}", batch)):
        found = alone.http.get(f"{path.partition('{')[0]}{named.json()['id']}")
        assert found.status_code == 200, found.text
        schema[path]["get"].validate_response(found)
    gone = alone.http.delete(f"/v1/files/{file.json()['id']}")
    assert gone.status_code == 200
    schema["/v1/files/{file_id}"]["delete"].validate_response(gone)


def test_the_document_names_the_ways_to_send_a_key(document: dict[str, Any]) -> None:
    assert set(document["components"]["securitySchemes"]) == {"bearer", "x-api-key"}
    assert "Authorization: Bearer KEY" in document["info"]["description"]
