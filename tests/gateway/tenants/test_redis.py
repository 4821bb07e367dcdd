"""Limits that gateways share, with a real redis-server: counted together, and no outage when it is killed."""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from kimi_serve.gateway.cost import Cost
from kimi_serve.gateway.tenants.charge import Charge, charge
from kimi_serve.gateway.tenants.counters import Counters, LocalCounters, Taken
from kimi_serve.gateway.tenants.errors import CountersError
from kimi_serve.gateway.tenants.fallback import FallbackCounters
from kimi_serve.gateway.tenants.keys import Key
from kimi_serve.gateway.tenants.limits import Limits, Refused
from kimi_serve.gateway.tenants.redis_counters import RedisCounters
from kimi_serve.gateway.tenants.resp import Redis, RedisError
from kimi_serve.protocol.errors import ApiError
from tests.gateway.tenants.clocks import NOW, Clock
from tests.gateway.tenants.redis_server import PASSWORD, Server

WALL = Clock(NOW.timestamp())


@asynccontextmanager
async def gateway(redis: Server, lease: int = 900, timeout: float = 5.0) -> AsyncIterator[RedisCounters]:
    async with RedisCounters(redis.client(timeout), lease=lease, wall=WALL) as counters:
        yield counters


def key_of(limits: Limits) -> Key:
    return Key("0123456789ab", "acme", "", NOW, "0123456789ab", limits=limits)


async def refusal_of(counters: Counters, limits: Limits, cost: Cost) -> ApiError:
    with pytest.raises(ApiError) as refused:
        await charge(counters, key_of(limits), cost)
    return refused.value


async def settled(counters: RedisCounters) -> None:
    async with asyncio.timeout(5):
        await counters._unsent.join()


EACH = [
    (Limits(requests_per_minute=3), Cost()),
    (Limits(tokens_per_minute=300), Cost(text_tokens=100)),
    (Limits(image_tokens_per_minute=300), Cost(image_tokens=100)),
    (Limits(pixels_per_minute=300), Cost(pixels=100)),
    (Limits(concurrent_requests=3), Cost()),
    (Limits(bytes_in_flight=300), Cost(bytes=100)),
    (Limits(tokens_per_month=300), Cost(text_tokens=100)),
]


@pytest.mark.parametrize(("limits", "cost"), EACH)
def test_two_gateways_grant_a_limit_once_between_them(redis: Server, limits: Limits, cost: Cost) -> None:
    async def story() -> None:
        async with gateway(redis) as ours, gateway(redis) as theirs:
            asked = [gate.take("account", limits, cost) for gate in (ours, theirs) for _ in range(20)]
            answers = await asyncio.gather(*asked)
            assert sum(isinstance(answer, Taken) for answer in answers) == 3

    asyncio.run(story())


@pytest.mark.parametrize(("limits", "cost"), EACH)
def test_redis_and_local_counters_refuse_alike(redis: Server, limits: Limits, cost: Cost) -> None:
    async def story() -> None:
        async with gateway(redis) as shared:
            local = LocalCounters(wall=WALL)
            errors = []
            for counters in (shared, local):
                for _ in range(3):
                    await charge(counters, key_of(limits), cost)
                errors.append(await refusal_of(counters, limits, cost))
            ours, theirs = errors
            assert (ours.code, ours.message) == (theirs.code, theirs.message)
            assert ours.retry_after == pytest.approx(theirs.retry_after, abs=1)

    asyncio.run(story())


def test_a_refusal_charges_no_limit(redis: Server) -> None:
    async def story() -> None:
        limits = Limits(3, 1000, 500, 10_000, 2, 4096, 50_000)
        async with gateway(redis) as counters:
            fits = Cost(500, 500, pixels=10_000, bytes=4096)
            await refusal_of(counters, limits, replace(fits, pixels=10_001))
            charged = await charge(counters, key_of(limits), fits)
            assert charged.standings["requests_per_minute"].remaining == 2
            assert charged.standings["tokens_per_minute"].remaining == 0

    asyncio.run(story())


@pytest.mark.parametrize(("limits", "cost"), EACH)
def test_a_refund_by_one_gateway_is_room_in_the_other(redis: Server, limits: Limits, cost: Cost) -> None:
    async def story() -> None:
        async with gateway(redis) as ours, gateway(redis) as theirs:
            charges = [await charge(ours, key_of(limits), cost) for _ in range(3)]
            await refusal_of(theirs, limits, cost)
            assert charges[0].refund()
            assert not charges[0].refund()
            await settled(ours)
            await charge(theirs, key_of(limits), cost)
            await refusal_of(theirs, limits, cost)

    asyncio.run(story())


def test_an_estimate_is_settled_to_what_was_used(redis: Server) -> None:
    async def story() -> None:
        limits = Limits(tokens_per_minute=1000, tokens_per_month=2000)
        async with gateway(redis) as counters:
            (await charge(counters, key_of(limits), Cost(text_tokens=1000))).settle(Cost(text_tokens=400))
            await settled(counters)
            charged = await charge(counters, key_of(limits), Cost(text_tokens=100))
            assert charged.standings["tokens_per_minute"].remaining == pytest.approx(500, abs=20)
            month = await counters._redis.call("GET", "kimi-serve:{0123456789ab}:month:2031-05")
            assert month == "500"

    asyncio.run(story())


def test_a_bucket_drains_by_the_servers_clock(redis: Server) -> None:
    async def story() -> None:
        limits = Limits(requests_per_minute=600)
        async with gateway(redis) as counters:
            for _ in range(3):
                await counters.take("account", Limits(requests_per_minute=3), Cost())
            refused = await counters.take("account", limits, Cost(requests=600))
            assert isinstance(refused, Refused)
            assert 0 < refused.wait < 0.31
            await asyncio.sleep(refused.wait)
            assert isinstance(await counters.take("account", limits, Cost(requests=600)), Taken)

    asyncio.run(story())


def test_what_a_dead_gateway_held_comes_back_after_its_lease(redis: Server) -> None:
    async def story() -> None:
        limits = Limits(tokens_per_month=3, concurrent_requests=1, bytes_in_flight=100)
        cost = Cost(text_tokens=1, bytes=100)
        async with gateway(redis, lease=1) as dying, gateway(redis, lease=1) as living:
            lost = await charge(dying, key_of(limits), cost)
            await refusal_of(living, limits, cost)
            dying._renewing.cancel()
            await asyncio.sleep(1.1)
            await charge(living, key_of(limits), cost)
            lost.refund()  # it was not dead but slow: too late, and of no effect on what others hold
            await settled(dying)
            await refusal_of(living, Limits(bytes_in_flight=100), Cost(bytes=1))
            assert await living._redis.call("GET", "kimi-serve:{0123456789ab}:month:2031-05") == "2"

    asyncio.run(story())


def test_what_runs_longer_than_its_lease_stays_counted(redis: Server) -> None:
    async def story() -> None:
        limits = Limits(concurrent_requests=70, bytes_in_flight=70)
        async with gateway(redis, lease=3) as counters:
            running = [await charge(counters, key_of(limits), Cost(bytes=1)) for _ in range(70)]
            await asyncio.sleep(7)
            await refusal_of(counters, limits, Cost(bytes=1))
            for one in running:
                one.refund()
            await settled(counters)
            assert not counters._running
            await charge(counters, key_of(limits), Cost(bytes=70))

    asyncio.run(story())


def test_keys_in_redis_expire_and_name_no_secret(redis: Server) -> None:
    async def story() -> None:
        async with gateway(redis) as counters:
            await charge(counters, key_of(Limits(tokens_per_month=5)), Cost(text_tokens=1))
            names = await counters._redis.call("KEYS", "*")
            assert isinstance(names, list)
            assert len(names) == 3
            for name in names:
                assert isinstance(name, str)
                left = await counters._redis.call("TTL", name)
                assert isinstance(left, int)
                assert left > 0

    asyncio.run(story())


def test_a_client_who_leaves_while_redis_answers_is_not_charged(redis: Server) -> None:
    async def story() -> None:
        limits = Limits(concurrent_requests=1, tokens_per_month=10)
        async with gateway(redis) as counters:
            await counters.take("other", limits, Cost())  # connects
            asking = asyncio.create_task(counters.take("account", limits, Cost(text_tokens=10)))
            await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await settled(counters)
            assert isinstance(await counters.take("account", limits, Cost(text_tokens=10)), Taken)

    asyncio.run(story())


def test_a_killed_redis_is_no_outage_and_is_used_again_when_it_is_back(redis: Server, clock: Clock) -> None:
    async def story() -> None:
        limits = Limits(requests_per_minute=3)
        async with gateway(redis, timeout=0.2) as shared:
            counters = FallbackCounters(shared, LocalCounters(wall=WALL), clock=clock)
            for _ in range(3):
                await charge(counters, key_of(limits), Cost())
            assert counters.fallbacks == 0
            redis.kill()
            for _ in range(3):  # now by the limits of this process
                await charge(counters, key_of(limits), Cost())
            await refusal_of(counters, limits, Cost())
            assert counters.fallbacks == 4
            assert counters.is_falling_back
            redis.start()
            await refusal_of(counters, limits, Cost())
            clock.now += 5
            await charge(counters, key_of(limits), Cost())  # that Redis forgot everything
            assert not counters.is_falling_back
            assert counters.fallbacks == 5

    asyncio.run(story())


def test_a_redis_killed_under_load_fails_no_request_and_hangs_none(redis: Server) -> None:
    async def story() -> list[float]:
        async with gateway(redis, timeout=0.2) as shared:
            counters = FallbackCounters(shared, LocalCounters(wall=WALL), pause=0.1)
            waits: list[float] = []

            async def client() -> None:
                for _ in range(30):
                    began = time.perf_counter()
                    with await charge(counters, key_of(Limits(10**6, concurrent_requests=100)), Cost()):
                        waits.append(time.perf_counter() - began)
                        await asyncio.sleep(0.01)

            clients = [asyncio.create_task(client()) for _ in range(10)]
            await asyncio.sleep(0.15)
            redis.kill()
            await asyncio.sleep(0.15)
            await asyncio.to_thread(redis.start)
            await asyncio.gather(*clients)
            assert counters.fallbacks > 0
            await asyncio.sleep(0.2)
            await charge(counters, key_of(Limits()), Cost())
            assert not counters.is_falling_back
            return waits

    waits = asyncio.run(story())
    assert len(waits) == 300
    assert max(waits) < 10


def test_a_redis_that_hangs_costs_its_timeout_once(redis: Server, clock: Clock) -> None:
    async def story() -> None:
        limits = Limits(concurrent_requests=10)
        async with gateway(redis, timeout=3) as shared:
            counters = FallbackCounters(shared, LocalCounters(wall=WALL), clock=clock)
            held = await charge(counters, key_of(limits), Cost())
            os.kill(redis.process.pid, signal.SIGSTOP)
            try:
                began = time.perf_counter()
                lost = await charge(counters, key_of(limits), Cost())
                assert 2.9 < time.perf_counter() - began < 30
                began = time.perf_counter()
                await charge(counters, key_of(limits), Cost())
                held.refund()
                assert time.perf_counter() - began < 2  # and not the timeout again
            finally:
                os.kill(redis.process.pid, signal.SIGCONT)
            await settled(shared)
            lost.refund()
            # What was in flight when it hung, and what ended meanwhile: both are out of Redis.
            assert await shared._redis.call("ZCARD", "kimi-serve:{0123456789ab}:running") == 0

    asyncio.run(story())


def test_one_request_asks_a_failed_redis_and_the_others_do_not_wait(clock: Clock) -> None:
    class Slow:
        asked = 0

        async def take(self, account: str, limits: Limits, cost: Cost) -> Taken | Refused:
            self.asked += 1
            await asyncio.sleep(0.01)
            raise CountersError("away")

    async def story() -> None:
        slow = Slow()
        counters = FallbackCounters(slow, LocalCounters(wall=WALL), pause=5, clock=clock)
        await counters.take("account", Limits(), Cost())
        clock.now += 5
        await asyncio.gather(*(counters.take("account", Limits(), Cost()) for _ in range(50)))
        assert slow.asked == 2
        assert counters.fallbacks == 51

    asyncio.run(story())


def test_a_charge_made_locally_is_settled_locally(clock: Clock) -> None:
    """Also when Redis is back by then: it knows nothing of that request."""

    async def story() -> Charge:
        nobody = Redis("127.0.0.1", 1, timeout=0.2)
        async with RedisCounters(nobody, wall=WALL) as shared:
            local = LocalCounters(wall=WALL)
            counters = FallbackCounters(shared, local, clock=clock)
            with await charge(counters, key_of(Limits(concurrent_requests=1)), Cost()) as charged:
                await refusal_of(counters, Limits(concurrent_requests=1), Cost())
            await charge(local, key_of(Limits(concurrent_requests=1)), Cost())
            return charged

    assert not asyncio.run(story()).is_open


def test_a_url_says_all_that_a_client_needs(redis: Server) -> None:
    async def story() -> None:
        url = f"redis://:a%20pass%2Fword%3Awith%40signs@127.0.0.1:{redis.port}/3"
        client = Redis.from_url(url, timeout=1)
        assert "id" in str(await client.call("CLIENT", "LIST"))
        assert "db=3" in str(await client.call("CLIENT", "INFO"))
        await client.aclose()

    asyncio.run(story())


def test_rediss_is_tls_with_a_certificate_that_is_checked(
    shared_redis: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate can be made")
    subject = ["-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
        *subject,
    ]
    subprocess.run(make, cwd=tmp_path, check=True, capture_output=True)
    tls = ["--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem", "--tls-ca-cert-file", "cert.pem"]
    redis = Server(tmp_path, [*tls, "--tls-auth-clients", "no"], port_option="--tls-port")

    async def story() -> None:
        url = f"rediss://:{quote(PASSWORD, safe='')}@127.0.0.1:{redis.port}"
        stranger = Redis.from_url(url, timeout=5)
        with pytest.raises(RedisError, match="SSLCertVerificationError"):
            await stranger.call("PING")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        client = Redis.from_url(url, timeout=5)
        assert await client.call("PING") == "PONG"
        await client.aclose()

    try:
        asyncio.run(story())
    finally:
        redis.kill()


@pytest.mark.parametrize("url", ["http://host", "redis://", "redis://host/x", "host:6379"])
def test_another_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(RedisError) as refused:
        Redis.from_url(url)
    assert "host:6379" not in str(refused.value)


def test_a_wrong_password_is_an_error_that_does_not_hold_it(redis: Server) -> None:
    async def story() -> None:
        client = Redis("127.0.0.1", redis.port, password="wrong-one")
        with pytest.raises(RedisError, match="WRONGPASS") as refused:
            await client.call("PING")
        assert "wrong-one" not in str(refused.value) + repr(client)

    asyncio.run(story())


def test_calls_at_once_each_get_their_own_answer(redis: Server) -> None:
    async def story() -> None:
        client = redis.client()
        words = [f"{number}" * (number % 50) for number in range(500)]
        assert await asyncio.gather(*(client.call("ECHO", word) for word in words)) == words
        with pytest.raises(RedisError, match="unknown command"):
            await client.call("NONSENSE")
        assert await client.call("GET", "nothing") is None
        await client.aclose()

    asyncio.run(story())


def test_an_answer_that_is_not_redis_is_an_error_at_once() -> None:
    async def story() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
            client = Redis("127.0.0.1", other.sockets[0].getsockname()[1], timeout=5)
            async with asyncio.timeout(1):
                with pytest.raises(RedisError):
                    await client.call("PING")
            await client.aclose()

    asyncio.run(story())


def test_a_call_that_timed_out_leaves_its_connection_to_no_other_call() -> None:
    async def story() -> None:
        opened: list[asyncio.StreamWriter] = []

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            opened.append(writer)
            while await reader.read(100):
                if len(opened) > 1:  # the first connection stays silent
                    writer.write(b"+PONG\r\n")
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as silent:
            client = Redis("127.0.0.1", silent.sockets[0].getsockname()[1], timeout=0.5)
            with pytest.raises(RedisError, match="TimeoutError"):
                await client.call("PING")
            assert await client.call("PING") == "PONG"
            await client.aclose()

    asyncio.run(story())
