"""Usage that several gateways count together, in Redis. Knows the script's arguments; has no answer without Redis.

Charges wait for Redis, and no longer than its timeout. Settlements do not: they are queued, sent by one task, and sent
again after a failure, which is safe because Redis settles a request once. What runs is held by leases, which a second
task renews: what a gateway that died was holding comes back.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from hashlib import sha1
from types import TracebackType
from typing import Final, Self

from kimi_serve.gateway.cost import NOTHING, Cost
from kimi_serve.gateway.tenants.counters import Taken
from kimi_serve.gateway.tenants.errors import CountersError
from kimi_serve.gateway.tenants.limits import (
    TOLERANCE,
    Amounts,
    Levels,
    Limits,
    Rates,
    Refused,
    judge,
    month_of,
    rates_of,
    standings,
    until_next_month,
)
from kimi_serve.gateway.tenants.resp import Redis, RedisError, Reply, Words
from kimi_serve.gateway.tenants.script import RENEWAL, SCRIPT

_SHA: Final = sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()  # as EVALSHA names it
_MOST_UNSENT: Final = 10_000
_BATCH: Final = 64
_RETRY_SECONDS: Final = 1.0
_CLOSING_SECONDS: Final = 1.0
_RENEWALS: Final = 3  # in the time of a lease


class RedisCounters:
    """`lease`: so many seconds after a gateway was last heard of, its requests are taken for lost with it."""

    def __init__(
        self, redis: Redis, *, prefix: str = "kimi-serve", lease: int = 900, wall: Callable[[], float] = time.time
    ) -> None:
        self._redis, self._prefix, self._lease, self._wall = redis, prefix, lease, wall
        self._gateway, self._requests = secrets.token_hex(6), 0
        self._unsent: asyncio.Queue[Words] = asyncio.Queue(_MOST_UNSENT)
        self._running: dict[str, set[str]] = {}  # members by account
        self._answered = asyncio.Event()  # by Redis, since the last settlement that failed
        self._on_their_way = 0
        self.unsettled = 0  # settlements that were given up: Redis was away for longer than a lease, or too many waited

    @property
    def unsent(self) -> int:
        """Settlements that wait for Redis, those that it was sent and did not answer among them."""
        return self._unsent.qsize() + self._on_their_way

    async def __aenter__(self) -> Self:
        self._sending = asyncio.create_task(self._send())
        self._renewing = asyncio.create_task(self._renew())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_SECONDS):
                await self._unsent.join()
        for task in (self._sending, self._renewing):
            task.cancel()
        await asyncio.wait([self._sending, self._renewing])
        await self._redis.aclose()

    async def take(self, account: str, limits: Limits, cost: Cost) -> Taken | Refused:
        self._requests += 1
        member = f"{self._gateway}-{self._requests:x}:{cost.bytes}"
        wall = self._wall()
        settle = partial(self._settle, account, month_of(wall), limits, member, cost)
        try:
            reply = await self._run(self._words("take", account, month_of(wall), limits, member, rates_of(cost)))
            taken, levels = _levels(reply)
            self._answered.set()
        except BaseException as error:
            # Redis may have counted it all the same, or will: nobody is left to settle it but we.
            settle(NOTHING)
            if isinstance(error, RedisError):
                raise CountersError(f"Redis: {error}") from error
            raise
        if not taken:
            refused = judge(limits, cost, levels, until_next_month(wall))
            assert refused is not None, "the script and judge() disagree"
            return refused
        self._running.setdefault(account, set()).add(member)
        one, two, three, four = (used + asked for used, asked in zip(levels.rates, rates_of(cost), strict=True))
        return Taken(standings(limits, (one, two, three, four)), settle)

    def _settle(self, account: str, month: str, limits: Limits, member: str, cost: Cost, actual: Cost) -> None:
        if running := self._running.get(account):
            running.discard(member)
            if not running:
                del self._running[account]
        one, two, three, four = (got - asked for got, asked in zip(rates_of(actual), rates_of(cost), strict=True))
        try:
            more = (one, two, three, four)
            self._unsent.put_nowait(self._words("settle", account, month, limits, member, more))
        except asyncio.QueueFull:
            self.unsettled += 1

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease / _RENEWALS)
            for account, running in list(self._running.items()):
                # Redis is away: the next renewal comes before the lease ends, and what ran out stays given up.
                with suppress(RedisError):
                    await self._redis.call("EVAL", RENEWAL, 1, self._leases(account), self._lease, *running)

    def _leases(self, account: str) -> str:
        return f"{self._prefix}:{{{account}}}:running"

    def _words(self, act: str, account: str, month: str, limits: Limits, member: str, amounts: Amounts) -> Words:
        # In braces: a cluster keeps all keys of an account on one node, as a script needs.
        base = f"{self._prefix}:{{{account}}}"
        keys = (f"{base}:state", self._leases(account), f"{base}:month:{month}")
        held = (limits.concurrent_requests, limits.bytes_in_flight, limits.tokens_per_month)
        known = [-1 if limit is None else limit for limit in (*limits.rates(), *held)]
        return (*keys, act, member, self._lease, *known[:4], *amounts, *known[4:], amounts[1], TOLERANCE)

    async def _run(self, words: Words) -> Reply:
        try:
            return await self._redis.call("EVALSHA", _SHA, 3, *words)
        except RedisError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
        return await self._redis.call("EVAL", SCRIPT, 3, *words)

    async def _send(self) -> None:
        while True:
            batch = [await self._unsent.get()]
            while not self._unsent.empty() and len(batch) < _BATCH:
                batch.append(self._unsent.get_nowait())
            give_up = time.monotonic() + self._lease
            while batch:
                self._on_their_way = len(batch)
                replies = await asyncio.gather(*map(self._run, batch), return_exceptions=True)
                failed = [words for words, reply in zip(batch, replies, strict=True) if isinstance(reply, RedisError)]
                for _ in range(len(batch) - len(failed)):
                    self._unsent.task_done()
                batch = failed
                if batch and time.monotonic() < give_up:
                    # Not a sleep: once charges reach Redis again, settlements behind these must not pile up.
                    self._answered.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._answered.wait(), _RETRY_SECONDS)
                elif batch:
                    self.unsettled += len(batch)
                    break
            self._on_their_way = 0


def _levels(reply: Reply) -> tuple[bool, Levels]:
    match reply:
        case [int(taken), str(one), str(two), str(three), str(four), int(running), int(held), int(spent)]:
            rates: Rates = (float(one), float(two), float(three), float(four))
            return bool(taken), Levels(rates, running, held, spent)
    raise RedisError("an answer that is not the script's")
