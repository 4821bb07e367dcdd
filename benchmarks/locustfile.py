"""Load by locust: one user offers all requests of a scenario when they are due. Knows locust; not what is asked.

    locust -f benchmarks/locustfile.py --headless --host http://127.0.0.1:8000 --scenario chat --out runs/chat
    locust -f benchmarks/locustfile.py --host http://127.0.0.1:8000                 # with its page, on port 8089

locust's users wait for answers, so a slow server would be asked less. Here the number of users is one and means
nothing: the rate is the scenario's. In locust's tables a request counts once in each type of row: TTFT and E2E, ITL for
every gap between two frames, and `refused` or `cancelled` instead of E2E. OPENAI_API_KEY in the environment is the key.
"""

from __future__ import annotations

import logging
import os
from argparse import ArgumentParser
from pathlib import Path

import gevent
from locust import User, events, stats, task
from locust.env import Environment
from locust.exception import StopUser

from benchmarks.load import measure, scenarios
from benchmarks.load.records import Record
from benchmarks.load.scenarios import ScenarioError

COULD_NOT_RUN = 2
TABLES_SETTLE_S = 2 * stats.CSV_STATS_INTERVAL_SEC  # locust writes its CSV every so often, and not once more at its end
logger = logging.getLogger(__name__)


class RequestFailedError(Exception):
    """As locust shows it among its failures."""


@events.init_command_line_parser.add_listener
def _arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--scenario", default="chat", help="a table of --scenarios")
    add("--scenarios", default=str(scenarios.BUNDLED), help="a TOML file")
    add("--out", default="load/chat", help="folder for what became of each request")
    add("--label", default="", help="the run's name in reports; empty: the scenario's")
    add("--model", default="", help="empty: the first that the server names")
    add("--rate", type=float, default=0.0, help="requests a second, instead of the scenario's")
    add("--seconds", type=float, default=0.0, help="instead of the scenario's")
    add("--process", default="", choices=["", "poisson", "constant"], help="instead of the scenario's")
    add("--capacity", type=float, default=0.0, help="requests a second that the server was seen to answer in time")
    add("--salt", default="", help="six digits; the same salt asks the same, word for word")
    add("--most-open", type=int, default=4096, help="requests that may be open; more are counted as not started")
    add("--commit", default="unknown", help="of what is measured, for the report")


class OpenLoop(User):
    """The whole load."""

    fixed_count = 1

    @task
    def offer(self) -> None:
        try:
            measure.measure(options(self.environment), lambda record: fire(self.environment, record))
        except (ScenarioError, ValueError, OSError) as error:
            logger.error("%s", error)  # noqa: TRY400  # a sentence for who started it
            self.environment.process_exit_code = COULD_NOT_RUN
        except Exception:  # locust would begin the task again, and so the load
            logger.exception("the run broke off")
            self.environment.process_exit_code = COULD_NOT_RUN
        gevent.spawn_later(TABLES_SETTLE_S, self._end)
        raise StopUser

    def _end(self) -> None:
        assert self.environment.runner is not None
        if self.environment.web_ui is None:
            self.environment.runner.quit()
        else:
            self.environment.runner.stop()


def options(environment: Environment) -> measure.Options:
    given = environment.parsed_options
    assert given is not None
    if not environment.host:
        raise ScenarioError("host: --host URL is missing, such as http://127.0.0.1:8000")
    return measure.Options(
        host=environment.host,
        scenario=given.scenario,
        out=Path(given.out),
        scenarios=Path(given.scenarios),
        key=os.environ.get("OPENAI_API_KEY"),
        model=given.model or None,
        label=given.label or None,
        rate=given.rate or None,
        seconds=given.seconds or None,
        process=given.process or None,
        capacity=given.capacity or None,
        salt=given.salt or None,
        most_open=given.most_open,
        commit=given.commit,
    )


def fire(environment: Environment, record: Record) -> None:
    """What locust's page, tables and CSV show of one request."""

    def tell(kind: str, name: str, seconds: float, error: Exception | None = None) -> None:
        environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=1000 * seconds,
            response_length=record.answer_tokens or 0,
            exception=error,
            context={},
        )

    if record.ttft_s is not None:
        tell("TTFT", record.part, record.ttft_s)
    for gap in record.gaps_s:
        tell("ITL", record.part, gap)
    match record.outcome:
        case "answered":
            tell("E2E", record.part, record.whole_s)
        case "failed":
            tell("E2E", record.part, record.whole_s, RequestFailedError(record.why))
        case "refused":
            tell("refused", f"{record.part}: {record.why}", record.whole_s)
        case "cancelled":
            tell("cancelled", record.part, record.whole_s)
