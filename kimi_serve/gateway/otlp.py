"""Spans, sent to a collector over OTLP and HTTP. Knows OpenTelemetry's SDK; not what a span is about.

Only this module imports OpenTelemetry, and only tracing.opened imports this module.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import requests
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from kimi_serve import __version__
from kimi_serve.gateway.settings import Tracing
from kimi_serve.gateway.tracing import Attributes, Kind, Span, Tracer

_KINDS: Final[dict[Kind, trace.SpanKind]] = {
    "server": trace.SpanKind.SERVER,
    "internal": trace.SpanKind.INTERNAL,
    "client": trace.SpanKind.CLIENT,
}
_CONTEXT: Final = TraceContextTextMapPropagator()


class OtlpSpan:
    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer, self._span = tracer, span
        self.is_recorded = span.is_recording()

    @property
    def trace_id(self) -> str | None:
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    def child(self, name: str, kind: Kind, attributes: Attributes) -> Span:
        within = trace.set_span_in_context(self._span, Context())
        return OtlpSpan(self._tracer, self._tracer.start_span(name, within, _KINDS[kind], attributes))

    def note(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def end(self, error: str | None = None, *, is_fault: bool = True) -> None:
        if error is not None:
            self._span.set_attribute("error.type", error)
        if error is not None and is_fault:
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()

    def headers(self) -> Mapping[str, str]:
        carrier: dict[str, str] = {}
        _CONTEXT.inject(carrier, trace.set_span_in_context(self._span, Context()))
        return carrier


class OtlpTracer:
    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def server(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> Span:
        """A span within the client's own trace, where it sent a valid traceparent."""
        given = {key: headers[key] for key in ("traceparent", "tracestate") if key in headers}
        within = _CONTEXT.extract(given, Context())
        return OtlpSpan(self._tracer, self._tracer.start_span(name, within, _KINDS["server"], attributes))


@asynccontextmanager
async def sending(settings: Tracing) -> AsyncIterator[Tracer]:
    """Spans wait in a queue of bounded length, and a thread sends them in batches: no request waits for a collector."""
    session = requests.Session()
    session.trust_env = False  # no proxy by surprise
    exporter = OTLPSpanExporter(endpoint=settings.endpoint, timeout=settings.timeout_s, session=session)
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
        resource=Resource.create({"service.name": settings.service_name, "service.version": __version__}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=settings.interval_s * 1000))
    try:
        yield OtlpTracer(provider.get_tracer("kimi_serve.gateway", __version__))
    finally:
        await asyncio.to_thread(provider.shutdown)
        session.close()
