"""`kimi-serve plan`: the question, the plan, what is said of it. Knows the order; the work is done beside it."""

import json
import os

from kimi_serve.launch import machine
from kimi_serve.plan import chart
from kimi_serve.plan import plan as plans
from kimi_serve.plan.options import Options
from kimi_serve.plan.record import record
from kimi_serve.plan.report import report


def run(options: Options) -> str:
    """The answer: tables, or one line of JSON."""
    if options.chart is not None:
        chart.check(options.chart)
    plan = plans.make(options, machine.read(), os.environ)
    if options.chart is not None:
        chart.draw(plan, options.chart)
    return json.dumps(record(plan)) if options.as_json else report(plan)
