"""Replicas that work, cache and forget, and agents that talk to them, in simulated time. Knows no chooser.

A replica does one thing after the other at a fixed rate. Its cache holds whole conversations up to a number of tokens
and forgets the one used longest ago: the truth, kept apart from what the gateway believes. A conversation begins as all
do, and grows by a screenshot and an answer a turn; the next turn comes when the answer was read.
"""

import heapq
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from kimi_serve.gateway.cost import Cost
from kimi_serve.gateway.replicas import Picture, Prompt, Replica, RequestView, Text, choose, read_prompt
from kimi_serve.gateway.replicas.health import Finding

SYSTEM, TASK, SCREENSHOT, ANSWER = 600, 60, 1024, 100  # tokens
RATE = 10_000  # tokens of work a second
CACHE = 200_000  # tokens a replica

Chooser = Callable[[Sequence[Replica], Prompt, RequestView], str | None]


@dataclass
class Engine:
    replica: Replica
    cache: OrderedDict[int, int] = field(default_factory=OrderedDict)  # conversation -> tokens
    free_at: float = 0.0
    worked: float = 0.0
    is_warm: bool = False  # has it read what all conversations begin with?

    def prefill(self, conversation: int, prompt_tokens: int) -> int:
        """Tokens found in the cache, which then holds the prompt."""
        cached = self.cache.pop(conversation, SYSTEM if self.is_warm else 0)
        self.is_warm = True
        self.cache[conversation] = prompt_tokens
        while sum(self.cache.values()) > CACHE:
            self.cache.popitem(last=False)
        return cached


@dataclass
class Result:
    prompt_tokens: int = 0
    cached_tokens: int = 0
    latencies: list[float] = field(default_factory=list)
    worked: list[float] = field(default_factory=list)
    spread: int = 0  # the most that outstanding work differed between two replicas

    @property
    def hit_rate(self) -> float:
        return self.cached_tokens / self.prompt_tokens

    @property
    def latency(self) -> float:
        return sum(self.latencies) / len(self.latencies)

    @property
    def imbalance(self) -> float:
        return max(self.worked) * len(self.worked) / sum(self.worked)


def ours(replicas: Sequence[Replica], prompt: Prompt, request: RequestView) -> str | None:
    return choose([replica.view(prompt) for replica in replicas], request)


def in_turn() -> Chooser:
    turn = [0]

    def chooser(replicas: Sequence[Replica], prompt: Prompt, request: RequestView) -> str:
        turn[0] += 1
        return replicas[turn[0] % len(replicas)].url

    return chooser


def by_chance(seed: int) -> Chooser:
    rng = random.Random(seed)
    return lambda replicas, prompt, request: rng.choice(replicas).url


def turn_of(conversation: int, turn: int) -> tuple[Prompt, RequestView, int]:
    parts: list[Text | Picture] = [Text(b"You use a computer." * 100, SYSTEM), Text(b"task %d" % conversation, TASK)]
    for number in range(turn):
        parts.append(Picture(b"screenshot %d of %d" % (number, conversation), SCREENSHOT))
        if number < turn - 1:
            parts.append(Text(b"click %d" % number, ANSWER))
    prompt = read_prompt(parts, b"tenant", opening=2)
    text = SYSTEM + TASK + (turn - 1) * ANSWER
    weight = Cost(text, turn * SCREENSHOT, output_tokens=ANSWER).weight
    return prompt, RequestView("kimi", weight, text + turn * SCREENSHOT + ANSWER, prompt.key), text + turn * SCREENSHOT


def simulate(chooser: Chooser, *, replicas: int, agents: int, conversations: int, turns: int, seed: int = 1) -> Result:
    now, result, rng = [0.0], Result(), random.Random(seed)
    engines = {url: Engine(Replica(url, clock=lambda: now[0])) for url in (f"http://r{n}" for n in range(replicas))}
    for engine in engines.values():
        engine.replica.note(Finding(models={"kimi": 131_072}))
    now[0] = 100.0  # slow start is over
    begun = agents
    serial = iter(range(10**9))
    events = [(now[0] + rng.uniform(0, 4), next(serial), agent, 1, ExitStack(), False) for agent in range(agents)]
    heapq.heapify(events)
    while events:
        now[0], _, conversation, turn, calls, is_answer = heapq.heappop(events)
        if is_answer:
            calls.close()
            if turn == turns:
                if begun == conversations:
                    continue
                conversation, turn, begun = begun, 0, begun + 1
            event = (now[0] + rng.uniform(1, 5), next(serial), conversation, turn + 1, ExitStack(), False)
        else:
            done = _serve(engines, chooser, now[0], conversation, turn, calls, result)
            event = (done, next(serial), conversation, turn, calls, True)
        heapq.heappush(events, event)
    assert all(engine.replica.outstanding == 0 for engine in engines.values())
    result.worked = [engine.worked for engine in engines.values()]
    return result


def _serve(
    engines: dict[str, Engine],
    chooser: Chooser,
    now: float,
    conversation: int,
    turn: int,
    calls: ExitStack,
    result: Result,
) -> float:
    prompt, request, prompt_tokens = turn_of(conversation, turn)
    url = chooser([engine.replica for engine in engines.values()], prompt, request)
    assert url is not None
    engine = engines[url]
    calls.enter_context(engine.replica.serving(prompt, request)).succeeded()
    outstanding = [engine.replica.outstanding for engine in engines.values()]
    result.spread = max(result.spread, max(outstanding) - min(outstanding))
    cached = engine.prefill(conversation, prompt_tokens)
    work = Cost(prompt_tokens - cached, output_tokens=ANSWER).weight
    engine.free_at = max(now, engine.free_at) + work / RATE
    engine.worked += work
    result.prompt_tokens += prompt_tokens
    result.cached_tokens += cached
    result.latencies.append(engine.free_at - now)
    return engine.free_at
