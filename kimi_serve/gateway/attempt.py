"""What one attempt at an engine holds, and gives back. Knows no order of attempts, and not what comes of them."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from kimi_serve.gateway.journey import Stage
from kimi_serve.gateway.replicas.replica import Call
from kimi_serve.gateway.upstream import Asking, Response


class Attempt:
    """A place in the engine's load, a span, and the connection."""

    def __init__(self, call: Call, stage: Stage) -> None:
        self.call, self.stage = call, stage
        self._asking: Asking | None = None
        self._is_over = False
        call.__enter__()

    async def ask(self, asking: Asking) -> Response:
        """Where it is the second time, the first answer is let go."""
        self._hang_up()
        response = await asking.__aenter__()
        self._asking = asking
        return response

    def end(self) -> None:
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._is_over:
            self._is_over = True
            self._hang_up()
            self.stage.__exit__(kind, error, at)
            self.call.__exit__(kind, error, at)

    def _hang_up(self) -> None:
        if self._asking is not None:
            self._asking.close()
            self._asking = None
