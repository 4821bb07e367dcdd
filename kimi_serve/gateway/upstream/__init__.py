"""Requests to engines: connections, their limits of time, what comes back. Chooses no engine, reads no answer."""

from kimi_serve.gateway.upstream.chunks import Chunks, Timeouts, UpstreamError
from kimi_serve.gateway.upstream.pool import Asking, Response, Upstream

__all__ = ["Asking", "Chunks", "Response", "Timeouts", "Upstream", "UpstreamError"]
