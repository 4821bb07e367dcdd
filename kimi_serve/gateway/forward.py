"""One request's way to an engine and back. Knows slots, replicas and outcomes; not what was asked.

Everything that a request holds (bytes, charge, slot, connection) hangs on one exit stack, so that whoever ends it,
the last byte, an error or a client that leaves, gives all of it back.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial

import msgspec

from kimi_serve.gateway.attempt import Attempt
from kimi_serve.gateway.cost import NOTHING, Cost
from kimi_serve.gateway.dialects import CHAT, Dialect
from kimi_serve.gateway.elision import Elision
from kimi_serve.gateway.fitting.told import Told
from kimi_serve.gateway.gateway import Gateway, engine_headers
from kimi_serve.gateway.identity import Caller
from kimi_serve.gateway.journey import Journey, Stage
from kimi_serve.gateway.leaving import draining
from kimi_serve.gateway.parcel import Parcel
from kimi_serve.gateway.prompt_cost import PromptCost
from kimi_serve.gateway.replicas.choose import RequestView
from kimi_serve.gateway.replicas.prompt import Prompt
from kimi_serve.gateway.replicas.replica import Call, Replica
from kimi_serve.gateway.streaming import Observation, current_client, relay
from kimi_serve.gateway.tenants.charge import Charge, LimitReachedError
from kimi_serve.gateway.tenants.headers import Standings
from kimi_serve.gateway.tracing import Value
from kimi_serve.gateway.upstream import Response, UpstreamError
from kimi_serve.protocol.errors import ApiError

_TRACE = ("traceparent", "tracestate")
_ANOTHER_MAY_DO = (502, 503, 504)


@dataclass(frozen=True, slots=True)
class Work:
    """What a route made of a request."""

    path: str
    body: Parcel
    model: str
    cost: PromptCost
    output_tokens: int  # at most, over all choices
    prompt: Prompt
    headers: Mapping[str, str]
    stream: bool
    arrived: float
    dialect: Dialect = CHAT
    told: Told | None = None  # what was done so that it fits, for the answer

    @property
    def headers_told(self) -> dict[str, str]:
        """What every answer to it says in its header."""
        fit = {} if self.told is None else self.told.header()
        return {"x-kimi-serve-prompt-tokens": str(self.cost.tokens), **fit}

    @property
    def estimate(self) -> Cost:
        cost = self.cost
        return Cost(cost.text_tokens, sum(cost.image_tokens), self.output_tokens, cost.pixels, self.body.size)


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, where the engine says so
    reasoning_tokens: int = 0


class Answered(msgspec.Struct):
    usage: dict[str, object] | None = None


@dataclass(slots=True)
class Exchange:
    gateway: Gateway
    caller: Caller
    work: Work
    stack: AsyncExitStack
    journey: Journey
    _charge: Charge | None = None
    _call: Call | None = None
    _stage: Stage | None = None  # of that call
    _estimate: Cost = NOTHING

    async def enter(self) -> None:
        """Pays and waits for a slot. Raises ApiError where the request is refused."""
        work, gateway = self.work, self.gateway
        cost = self._estimate = work.estimate
        await self._pay(cost)
        deadline_s = gateway.settings.admission.deadline_s
        turn = gateway.admission.slot(self.caller.tenant, cost, self.caller.priority, deadline_s, arrived=work.arrived)
        with self.journey.enter("queue"):
            slot = await self.stack.enter_async_context(turn)
        gateway.metrics.queue_seconds.observe(slot.waited_s)
        gateway.retries.count_request()

    async def open(self) -> Response:
        """The engine's answer, from its first byte. Where one engine fails, another is tried."""
        return await self._send(self._estimate)

    async def _pay(self, estimate: Cost) -> None:
        cost = self.work.cost
        try:
            self._charge = await self.gateway.identity.charge(self.caller, estimate)
        except LimitReachedError as error:
            self._tell(error.standings)
            raise
        if self._charge is not None:
            self.stack.enter_context(self._charge)
            self._tell(self._charge.standings)
        m, tenant = self.gateway.metrics, self.gateway.metrics.tenant(self.caller.tenant)
        m.prompt_tokens.labels(tenant).inc(cost.tokens)
        m.image_tokens.labels(tenant).inc(estimate.image_tokens)
        m.images.labels(tenant).inc(len(cost.image_tokens))
        m.reserved_tokens.labels(tenant).inc(self.work.output_tokens)
        m.worked(self.caller.tenant, estimate.weight)
        m.request_tokens.observe(cost.tokens)
        m.request_images.observe(len(cost.image_tokens))

    def _tell(self, standings: Standings) -> None:
        self.journey.ratelimit = self.work.dialect.ratelimit(standings)

    async def _send(self, cost: Cost) -> Response:
        work, gateway = self.work, self.gateway
        total = work.cost.tokens + work.output_tokens
        attempt: Attempt | None = None
        last, failed, tries = None, frozenset[str](), 0
        while True:
            request = RequestView(work.model, cost.weight, total, work.prompt.key, failed)
            replica = gateway.fleet.choose(work.prompt, request)
            if replica is None and tries == 1 and _was_hung_up(last):
                replica = gateway.fleet.choose(work.prompt, replace(request, excluded=frozenset()))
            if last is not None:
                if replica is None or not (_costs_nothing(last, tries) or gateway.retries.try_spend()):
                    return _outcome(last)
                gateway.metrics.retries.inc()
                assert attempt is not None
                attempt.end()
            if replica is None:
                return _outcome(None)
            attempt = self._begin(replica, request)
            last = await self._try(replica, attempt)
            if not (last.status in _ANOTHER_MAY_DO if isinstance(last, Response) else last.may_retry):
                return _outcome(last)
            failed |= {replica.url}
            tries += 1

    def _begin(self, replica: Replica, request: RequestView) -> Attempt:
        call = replica.serving(self.work.prompt, request)
        self.gateway.metrics.expected_cached.inc(call.prefix_tokens)
        self._stage = self.journey.call(self.work.path, replica.url)
        attempt = Attempt(call, self._stage)
        self.stack.push(attempt)
        return attempt

    async def _try(self, replica: Replica, attempt: Attempt) -> Response | UpstreamError:
        call, stage = attempt.call, attempt.stage
        send = partial(self._post, replica.url, self._headers(stage), attempt)
        try:
            response = await self._elision().deliver(self.work.body, replica.holdings, send)
            if response.status == 200:
                await response.begin()  # until then nothing has gone to the client, and another engine may do
        except UpstreamError as error:
            (call.refused if _was_refused(error) else call.failed)()
            stage.error = error.code
            return error
        if response.status >= 400:
            stage.error = str(response.status)
        if response.status >= 500:
            call.failed()
        self._call = call
        return response

    def _elision(self) -> Elision:
        gateway, work = self.gateway, self.work
        is_on = gateway.settings.elision.enabled
        return Elision(is_on, gateway.metrics, work.dialect, work.stream, gateway.retries.try_spend)

    async def _post(self, url: str, headers: Mapping[str, str], attempt: Attempt, body: Sequence[bytes]) -> Response:
        upstream = self.gateway.upstream
        # An engine is silent until its whole answer is done, where it does not stream.
        limits = upstream.timeouts if self.work.stream else upstream.patient
        return await attempt.ask(upstream.open(url, self.work.path, body, headers, timeouts=limits))

    def _headers(self, stage: Stage) -> dict[str, str]:
        """The client's own trace goes on; where we have spans of our own, the engine's begin in ours."""
        traced = stage.span.headers()
        names = ("x-request-id",) if traced else ("x-request-id", *_TRACE)
        passed = {name: self.work.headers[name] for name in names if name in self.work.headers} | dict(traced)
        accept = "text/event-stream" if self.work.stream else "application/json"
        return {"content-type": "application/json", "accept": accept, **passed, **engine_headers(self.gateway.settings)}

    async def read(self, response: Response) -> bytes:
        """The whole answer of a request that does not stream."""
        assert self._call is not None
        try:
            data = await response.read()
        except UpstreamError as error:
            self._call.failed()
            self._stage_failed(error.code)
            raise
        if response.status < 500:
            self._call.succeeded()
        if response.status == 200:
            self._call.prompt_was_read()
            self.stack.callback(self._settle_whole, data)  # when the client has it
        return data

    def _settle_whole(self, data: bytes) -> None:
        try:
            told = msgspec.json.decode(data, type=Answered).usage
        except (msgspec.DecodeError, msgspec.ValidationError):
            told = None
        self._settle(self._usage(told))

    def frames(self, response: Response) -> AsyncGenerator[bytes, None]:
        """The answer of a request that streams, as it comes. To be read while it is told of leaving."""
        return relay(
            response.chunks,
            keep_alive_s=self.gateway.settings.stream.keep_alive_s,
            clock=time.monotonic,
            observe=self._observe,
            dialect=self.work.dialect,
            rename=self.renamed,
            client=current_client.get(None),
        )

    def told_of_leaving(self, response: Response) -> AbstractContextManager[None]:
        return self.gateway.leaving.telling(lambda: response.end(draining()))

    def renamed(self, data: bytes) -> bytes:
        if not self.work.dialect.renames_thoughts:
            return data
        return rename_thoughts(data, self.gateway.settings.policy.reasoning_field)

    def _observe(self, seen: Observation) -> None:
        assert self._call is not None
        m = self.gateway.metrics
        if seen.outcome == "complete":
            self._call.succeeded()
        elif seen.outcome == "failed":
            self._call.failed()
            self.broke_off(seen.error or "upstream_error")
        if seen.first_at is not None:
            self._call.prompt_was_read()
            self.journey.ttft_s = seen.first_at - self.journey.arrived
            m.ttft_seconds.observe(self.journey.ttft_s)
        if seen.first_at is not None and seen.last_at is not None:
            m.gap_seconds.add(seen.gaps, seen.last_at - seen.first_at)
        self._settle(self._usage(seen.usage) or Usage(self.work.cost.tokens, seen.content_frames))

    def broke_off(self, code: str) -> None:
        """A stream ends with an error event."""
        self.gateway.metrics.broken_streams.labels(code).inc()
        self.journey.reason = code
        self._stage_failed(code)

    def _stage_failed(self, code: str) -> None:
        if self._stage is not None:
            self._stage.error = code

    def _usage(self, told: Mapping[str, object] | None) -> Usage | None:
        if told is None:
            return None
        try:
            return msgspec.convert(self.work.dialect.counted(told), Usage)
        except (msgspec.ValidationError, TypeError):
            return None

    def _settle(self, usage: Usage | None) -> None:
        """What was used takes the place of what was estimated."""
        m, cost = self.gateway.metrics, self.work.cost
        usage = usage or Usage(cost.tokens, self.work.output_tokens)
        m.completion_tokens.labels(m.tenant(self.caller.tenant)).inc(usage.completion_tokens)
        if usage.prompt_tokens != cost.tokens:
            m.miscounted.inc()
            m.miscount.inc(abs(usage.prompt_tokens - cost.tokens))
        m.cached.inc(usage.cached_tokens)
        self._tell_usage(usage)
        if self._charge is not None:
            estimate = self._estimate
            text = usage.prompt_tokens - estimate.image_tokens
            self._charge.settle(replace(estimate, text_tokens=text, output_tokens=usage.completion_tokens))

    def _tell_usage(self, usage: Usage) -> None:
        journey, cost = self.journey, self.work.cost
        journey.completion_tokens = usage.completion_tokens
        if self._stage is None or not self._stage.span.is_recorded:
            return
        told: dict[str, Value] = {
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.usage.text.input_tokens": cost.text_tokens,
            "gen_ai.usage.image.input_tokens": sum(cost.image_tokens),
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
            "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
        }
        if journey.ttft_s is not None:
            told["gen_ai.response.time_to_first_chunk"] = journey.ttft_s
        self._stage.span.note(told)


def rename_thoughts(data: bytes, name: str) -> bytes:
    """vLLM 0.32 calls thoughts `reasoning`. A quote inside a JSON string is escaped, so this meets keys only."""
    if name == "reasoning" or b'"reasoning":' not in data:
        return data
    return data.replace(b'"reasoning":', b'"reasoning_content":')


def _costs_nothing(last: ApiError | Response, tries: int) -> bool:
    """Where all requests of a lost engine move at once, no more work is done than before: a share of them would be a
    limit at the wrong time. Only the first time: what loses two engines may be the request.
    """
    return _was_refused(last) or (tries == 1 and isinstance(last, UpstreamError) and last.is_lost)


def _was_refused(last: ApiError | Response) -> bool:
    """Nobody took the connection: it cost no engine anything to be asked, and asking another doubles no load."""
    return isinstance(last, UpstreamError) and last.stage == "connect" and last.code == "upstream_error"


def _was_hung_up(last: ApiError | Response | None) -> bool:
    """It may have been an idle connection that was just being closed: where no other engine is left, this one again."""
    return isinstance(last, UpstreamError) and last.stage == "headers" and last.code == "upstream_error"


def _outcome(last: ApiError | Response | None) -> Response:
    if last is None:
        raise ApiError("no_replica", "no engine that serves this model is ready; retry later", retry_after=5.0)
    if isinstance(last, ApiError):
        raise last
    return last
