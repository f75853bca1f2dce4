"""
The ledger as a page of plots, results/ledger.png: a panel for each table of measured rows and data set of the paper.

One colour, one meaning: blue is measured by us, hollow black printed by the paper, dashed grey the majority class.
"""

import statistics
from dataclasses import dataclass

from hf_mamba.classification.support.extras import require


MEASURED, PAPER, MAJORITY, TEXT = "#1f6fb4", "#222222", "#8a8a8a", "#222222"
# Inches: the page, its head, a row of a panel, what is around its rows; room for labels left and figures right
_WIDTH, _HEAD, _ROW, _FRAME, _LABELS, _FIGURES = 14.0, 0.85, 0.27, 1.0, 2.75, 1.2
_LONGEST = 36  # characters of a label that have room there


@dataclass
class Dot:
    """
    A row of a panel.

    Args:
        label: in words
        values: one per seed; empty if it was not run
        low, high: 95 % interval of the mean over seeds, or None
        paper: the paper's figure, or None
    """

    label: str
    values: list[float]
    low: float | None = None
    high: float | None = None
    paper: float | None = None

    @property
    def mean(self):
        """Over seeds; None if not run."""
        return statistics.fmean(self.values) if self.values else None

    def figures(self):
        """Its figures as text, on the right of the row."""
        if not self.values:
            return _number(self.paper, 4)  # as printed
        sd = f" ± {_number(statistics.stdev(self.values))}" if len(self.values) > 1 else ""
        return f"{_number(self.mean)}{sd}"


@dataclass
class Panel:
    """
    One plot.

    Args:
        title: above it
        dots: from top to bottom
        metric: under the axis
        majority: score of the majority class, or None
        reference: the dot that others are compared with, or None
    """

    title: str
    dots: list[Dot]
    metric: str
    majority: float | None = None
    reference: Dot | None = None

    @property
    def height(self):
        """Inches."""
        return _FRAME + _ROW * len(self.dots)


def _number(value, digits=3):
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text


def measured_panel(ledger, table) -> Panel:
    """The panel of a table of measured rows, in the order of rows.yaml."""
    words = ledger.words["tables"].get(table, {"title": table})
    run = {row: line for (of, row), line in ledger.measured.items() if of == table}
    order = [row for row in words.get("rows", run) if row in run]
    metric = run[order[0]]["metric"]
    dots = {}
    for row in order:
        score = run[row]["scores"][metric]
        dots[row] = Dot(run[row]["what"], score["values"], *_ends(score, metric))
    majority = next((line["majority"] for line in run.values() if line["majority"] is not None), None)
    split = run[order[0]]["split"]
    axis = f"{metric.replace('_', ' ')} on {split} posts"
    title = words.get("short", words["title"])
    return Panel(title, list(dots.values()), axis, majority, dots.get(words.get("reference")))


def _ends(score, metric):
    """The interval over seeds, cut off where a score can't go."""
    low, high = score["seeds_low"], score["seeds_high"]
    if low is None or metric == "rmse":
        return low, high
    return max(low, 0.0), min(high, 1.0)


def paper_panel(ledger, table) -> Panel:
    """
    What the paper prints of a data set, its Table 1 or 2 and the ablations on the same data: hollow; with ours where
    they were run.
    """
    number, words = int(table.removeprefix("table")), ledger.words["tables"]
    main = [row for row in ledger.paper if row["table"] == number]
    data = main[0]["data"]
    metric = "accuracy" if "accuracy" in main[0]["figures"] else "total"
    others = [row for row in main if not row.get("ours")]
    best = max(others, key=lambda row: float(row["figures"][metric]))
    dots = []
    shown = [row for row in ledger.paper if row.get("ours") and row["data"] == data]
    for row in shown:
        key = f"table{row['table']}"
        of = words[key]["rows"][row["row"]]
        if row["table"] > 2 and "same_as" in of:
            continue  # the same run as the row of Table 1 or 2
        line = ledger.measured.get((key, row["row"]))
        score = line["scores"]["accuracy"] if line else None
        label = f"{of['label']} alone" if row["table"] == 3 else of["label"]
        figure = float(row["figures"].get(metric) or row["figures"]["accuracy"])
        ours = (score["values"], *_ends(score, "accuracy")) if score else ([], None, None)
        dots.append(Dot(label, *ours, figure))
    dots.append(Dot(f"best other: {best['method']}", [], paper=float(best["figures"][metric])))
    posts = words[table].get("posts_per_class")
    title = words[table].get("short", words[table]["title"])
    return Panel(title, dots, "accuracy on test posts", max(posts) / sum(posts) if posts else None)


def panels_of(ledger) -> list[Panel]:
    """Every panel of the page."""
    of_paper = [table for table in ("table1", "table2") if table in ledger.words["tables"]]
    named = [*ledger.words["tables"], *(table for table, _ in ledger.measured)]
    run = {table for table, _ in ledger.measured}
    tables = [name for name in dict.fromkeys(named) if name in run and not name.startswith("table")]
    return [*(measured_panel(ledger, table) for table in tables), *(paper_panel(ledger, table) for table in of_paper)]


def in_columns(panels) -> list[list[Panel]]:
    """Panels in two columns, each into the one that is shorter so far."""
    columns = [[], []]
    for panel in panels:
        min(columns, key=lambda column: sum(one.height for one in column)).append(panel)
    return [column for column in columns if column]


def write_plots(ledger, path) -> None:
    """
    Writes the page as a PNG.

    Raises:
        ValueError: matplotlib is not installed.
    """
    require("matplotlib", "plots", "ledger.png (--no_plot leaves it out)")
    page_of(panels_of(ledger)).savefig(path)


def page_of(panels):
    """The page as a matplotlib Figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = in_columns(panels)
    height = max(sum(panel.height for panel in column) for column in columns) + _HEAD
    figure = Figure(figsize=(_WIDTH, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    box = _WIDTH / len(columns)
    for place, column in enumerate(columns):
        top = height - _HEAD
        for panel in column:
            top -= panel.height
            inches = (place * box + _LABELS, top + 0.5, box - _LABELS - _FIGURES, panel.height - _FRAME)
            plot_panel(figure.add_axes([inch / of for inch, of in zip(inches, (_WIDTH, height) * 2)]), panel)
    title = "HF-Mamba: measured here, and printed by the paper"
    figure.text(0.02, 1 - 0.32 / height, title, fontsize=15, weight="bold")
    legend(figure, height)
    return figure


def legend(figure, height):
    """What the marks mean, once for all panels."""
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], color=MEASURED, marker="o", lw=2.2, ms=7),
        Line2D([], [], color=MEASURED, marker="|", lw=0, ms=9, mew=1.2, alpha=0.7),
        Line2D([], [], color=PAPER, marker="o", lw=0, ms=7, mfc="white"),
        Line2D([], [], color=MAJORITY, lw=1.3, ls=(0, (4, 3))),
    ]
    words = [
        "measured: mean, 95 % interval over seeds",
        "each seed",
        "printed by the paper, not run",
        "majority class",
    ]
    figure.legend(
        marks, words, loc="upper left", bbox_to_anchor=(0.012, 1 - 0.38 / height), ncols=4, frameon=False, fontsize=10
    )


def plot_panel(axes, panel: Panel) -> None:
    """One panel: rows from the top, their figures on the right."""
    count = len(panel.dots)
    low, high = limits(panel)
    axes.set(xlim=(low, high), ylim=(count - 0.4, -0.6))
    left = (-72 * (_LABELS - 0.28), 8)  # over the labels, so that long titles have the whole width
    axes.annotate(
        panel.title, (0, 1), xycoords="axes fraction", xytext=left, textcoords="offset points", fontsize=11.5,
        weight="bold",
    )  # fmt: skip
    axes.set_xlabel(panel.metric, fontsize=9, color=TEXT, labelpad=2)
    labels = [dot.label if len(dot.label) <= _LONGEST else f"{dot.label[: _LONGEST - 1]}…" for dot in panel.dots]
    axes.set_yticks(range(count), labels, fontsize=9.5)
    axes.tick_params(axis="y", length=0, pad=6)
    axes.tick_params(axis="x", labelsize=8.5, color="#cccccc")
    axes.grid(axis="x", color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#cccccc")
    if panel.majority is not None:
        axes.axvline(panel.majority, color=MAJORITY, lw=1.3, ls=(0, (4, 3)), zorder=1)
    if panel.reference is not None:
        axes.axvline(panel.reference.mean, color=MEASURED, lw=0.8, alpha=0.5, zorder=1)
        axes.get_yticklabels()[panel.dots.index(panel.reference)].set_fontweight("bold")
    for place, dot in enumerate(panel.dots):
        plot_dot(axes, place, dot)
        axes.annotate(
            dot.figures(), (1, place), xycoords=("axes fraction", "data"), xytext=(8, 0), textcoords="offset points",
            va="center", fontsize=9, color=MEASURED if dot.values else PAPER,
        )  # fmt: skip


def plot_dot(axes, place, dot: Dot) -> None:
    """The marks of one row."""
    if dot.paper is not None:
        axes.plot(dot.paper, place, "o", mfc="white", mec=PAPER, mew=1.3, ms=7, zorder=3)
    if not dot.values:
        return
    if dot.low is not None:
        axes.plot((dot.low, dot.high), (place, place), color=MEASURED, lw=2.2, solid_capstyle="round", zorder=2)
    axes.plot(dot.values, [place] * len(dot.values), "|", color=MEASURED, ms=9, mew=1.2, alpha=0.7, zorder=3)
    axes.plot(dot.mean, place, "o", color=MEASURED, ms=6.5, zorder=4)


def limits(panel: Panel) -> tuple[float, float]:
    """Where the axis begins and ends: around everything that is plotted, up to 1 where scores get there."""
    plotted = [
        value for dot in panel.dots for value in (*dot.values, dot.low, dot.high, dot.paper) if value is not None
    ]
    plotted += [panel.majority] if panel.majority is not None else []
    margin = 0.04 * (max(plotted) - min(plotted) or 1)
    return min(plotted) - margin, max(plotted) + margin
