"""Asks an engine how it is, and proves that it runs our classes. Knows three routes; never what follows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import aiohttp

OURS: Final = "kimi_serve.model."


@dataclass(frozen=True, slots=True)
class HealthTimes:
    interval_s: float = 5.0
    jitter: float = 0.2  # share of the interval, so that many gateways do not ask in step
    timeout_s: float = 2.0  # for each route
    unready_after: int = 2  # failed checks in a row; one good check is enough to be ready


@dataclass(frozen=True, slots=True)
class Finding:
    problem: str | None = None  # a sentence; None when all is well
    models: Mapping[str, int] = field(default_factory=dict)  # served name -> longest context in tokens
    instance: str | None = None  # another after every start; None where the engine does not say
    image_cache_bytes: int | None = None  # what it keeps of processed images; None where it does not say
    max_running_requests: int | None = None  # more wait in its own line; None where it does not say


async def check(session: aiohttp.ClientSession, url: str, timeout_s: float) -> Finding:
    try:
        await _get(session, f"{url}/health", timeout_s)
        info = await _get_json(session, f"{url}/plugins/kimi_serve/info", timeout_s)
        problem = wrong_class(info)
        if problem:
            return Finding(problem)
        models = served_models(await _get_json(session, f"{url}/v1/models", timeout_s))
        return Finding(None, models, *caches(info), batch(info))
    except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
        return Finding(f"{type(error).__name__}: {error}")


def wrong_class(info: object) -> str | None:
    """vLLM has a class of the same architecture name: an engine that fell back to it is not ours."""
    name = info.get("model_class") if isinstance(info, dict) else None
    if isinstance(name, str) and name.startswith(OURS):
        return None
    return f"/plugins/kimi_serve/info: model_class is {name!r}, expected one of {OURS}*"


def caches(info: object) -> tuple[str | None, int | None]:
    """The start whose caches these are, and the size of the images'; None where the engine does not say."""
    assert isinstance(info, dict)
    instance, size = info.get("instance"), info.get("image_cache_bytes")
    return instance if isinstance(instance, str) else None, size if isinstance(size, int) else None


def batch(info: object) -> int | None:
    """Requests that it computes at once; None where it does not say."""
    assert isinstance(info, dict)
    told = info.get("max_running_requests")
    return told if type(told) is int and told > 0 else None


def served_models(listing: object) -> dict[str, int]:
    """From GET /v1/models. An adapter that states no length has the shortest of the others'."""
    entries = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("/v1/models: expected {'data': [{'id': ...}, ...]}")
    lengths = {str(entry["id"]): entry.get("max_model_len") for entry in entries if "id" in entry}
    known = [length for length in lengths.values() if isinstance(length, int)]
    if not known:
        raise ValueError("/v1/models: no model states its max_model_len")
    return {name: length if isinstance(length, int) else min(known) for name, length in lengths.items()}


async def _get(session: aiohttp.ClientSession, url: str, timeout_s: float) -> bytes:
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with session.get(url, timeout=timeout, allow_redirects=False) as response:
        if response.status != 200:
            raise ValueError(f"{url} answered {response.status}")
        return await response.read()


async def _get_json(session: aiohttp.ClientSession, url: str, timeout_s: float) -> object:
    parsed: object = json.loads(await _get(session, url, timeout_s))
    return parsed
