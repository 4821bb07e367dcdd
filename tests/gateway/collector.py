"""A stand-in for an OpenTelemetry collector: takes spans by OTLP over HTTP. Knows the protobuf; expects nothing."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kimi_serve.testing.serving import in_thread

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Span:
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    seconds: float
    is_error: bool
    attributes: Mapping[str, Value]
    resource: Mapping[str, Value]


@dataclass
class Collector:
    """An ASGI application; `raw` is all that ever came in, as bytes."""

    spans: list[Span] = field(default_factory=list)
    raw: bytes = b""
    paths: set[str] = field(default_factory=set)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        self.raw += body
        self.paths.add(request.url.path)
        told = ExportTraceServiceRequest.FromString(body)
        for group in told.resource_spans:
            resource = read(group.resource.attributes)
            self.spans += [shown(span, resource) for scoped in group.scope_spans for span in scoped.spans]
        await Response(b"", media_type="application/x-protobuf")(scope, receive, send)

    def wait(self, is_there: Callable[[list[Span]], bool], seconds: float = 20.0) -> list[Span]:
        deadline = time.monotonic() + seconds
        while not is_there(self.spans):
            assert time.monotonic() < deadline, [span.name for span in self.spans]
            time.sleep(0.02)
        return list(self.spans)


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """The collector, and the URL that spans are sent to."""
    collector = Collector()
    with in_thread(collector) as served:
        yield collector, f"{served.url}/v1/traces"


def shown(span: Sent, resource: Mapping[str, Value]) -> Span:
    return Span(
        span.name,
        Sent.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        span.status.code == 2,
        read(span.attributes),
        resource,
    )


def read(attributes: list[KeyValue]) -> dict[str, Value]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    assert kind in ("string_value", "int_value", "double_value", "bool_value"), kind
    found: Value = getattr(value, kind)
    return found
