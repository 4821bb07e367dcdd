"""A plan's memory as a picture. Knows matplotlib, which is imported only when a chart is asked for."""

import importlib.util
from pathlib import Path

from kimi_serve.errors import PlanError
from kimi_serve.launch.sizes import GIB
from kimi_serve.plan.plan import Plan

INCHES = (9.0, 4.5)
MARKED_GB = (24, 48, 80, 141)  # memory sizes drawn as lines, where they fall into the picture


def check(path: Path) -> None:
    """Raise PlanError for what would fail after the work."""
    if path.suffix.lower() != ".png":
        raise PlanError(f"--chart: {path} is not supported; expected a name that ends in .png")
    if not path.resolve().parent.is_dir():
        raise PlanError(f"--chart: {path.parent} is not a directory")
    if importlib.util.find_spec("matplotlib") is None:
        raise PlanError("--chart: matplotlib is not installed; pip install matplotlib")


def draw(plan: Plan, path: Path) -> None:
    """Stacked bars, one a scheme: what a GPU holds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = [each.weights.scheme for each in plan.possible]
    ends = [0.0] * len(names)
    bars = [*(part.name for part in plan.possible[0].fixed), "cache"]
    for number, bar in enumerate(bars):
        sizes = [
            (each.fixed[number].nbytes if number < len(each.fixed) else each.cache) / GIB for each in plan.possible
        ]
        axes.barh(names, sizes, left=ends, label=bar)
        ends = [end + size for end, size in zip(ends, sizes, strict=True)]
    for gigabytes in MARKED_GB:
        usable = gigabytes * 1e9 * plan.options.utilization / GIB
        if usable <= max(ends) * 1.3:
            axes.axvline(usable, color="grey", linestyle="--", linewidth=1)
            axes.text(usable, len(names) - 0.45, f"{gigabytes} GB", ha="center", va="bottom", fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("GiB on each GPU")
    request = f"{plan.options.concurrency} x {plan.request.context:,} tokens"
    axes.set_title(f"{plan.name}, {request}, tensor parallel {plan.options.tensor_parallel}", pad=18)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise PlanError(f"--chart: {path} cannot be written: {error.strerror}") from error
