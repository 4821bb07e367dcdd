"""Log lines as JSON, one event a line. Knows fields; is never given a prompt, a picture or a key.

What an exception says is left out, since it may quote what a client sent: its type and its place are told.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from kimi_serve.gateway.middleware import request_id

_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_MOST_CAUSES: Final = 8
_encode: Final = json.JSONEncoder(default=str).encode
logger = logging.getLogger(__name__)


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": f"{_second(int(record.created))}.{int(record.created % 1 * 1000):03}+00:00",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            "request_id": request_id.current.get(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _OWN}
        if record.exc_info:
            line["exception"] = places(record.exc_info[1])
        return _encode(line)


@lru_cache(maxsize=4)
def _second(since_1970: int) -> str:
    return datetime.fromtimestamp(since_1970, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def places(error: BaseException | None) -> list[dict[str, object]]:
    """The exception and what caused it, each by its type and the lines that it came through, outermost first."""
    told: list[dict[str, object]] = []
    while error is not None and len(told) < _MOST_CAUSES:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        told.append({"type": type(error).__qualname__, "at": lines})
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return told


def of_loop(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """In place of asyncio's own, which would write out what an exception says."""
    logger.error(str(context["message"]), exc_info=context.get("exception"))


def to_stderr(level: int = logging.INFO) -> None:
    # What no line says is not looked up: these are the switches that logging documents for it.
    logging._srcfile = None
    logging.logThreads = logging.logMultiprocessing = logging.logProcesses = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
