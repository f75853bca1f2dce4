"""The audit on one page of plots, for the extra [plots]."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..support.extras import install_command
from .audit import Audit


if TYPE_CHECKING:
    from matplotlib.axes import Axes


HOW_TO_GET_IT = f"For the image too: {install_command('plots')}."
_COLOURS = {"clean": "#7a8794", "note": "#4c86b8", "warning": "#d98e04", "leak": "#c0392b"}
_MAJORITY = "#222222"
_SHOWN_TOKENS = 15


def is_available() -> bool:
    return find_spec("matplotlib") is not None


def plot_audit(audit: Audit, path: str | Path) -> None:
    """
    Writes the page.

    Args:
        audit: what was found
        path: of the file; its suffix, .png for one, decides its format
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no window, no global state
    from matplotlib.figure import Figure

    height = max(7.0, 2.2 + 0.34 * len(audit.scores))
    figure = Figure(figsize=(14, height), layout="constrained")
    FigureCanvasAgg(figure)
    ((left, right),) = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.25, 1))
    _plot_probes(left.subplots(), audit)
    tokens, repeats = right.subplots(2, 1, height_ratios=(1.5, 1))
    _plot_tokens(tokens, audit)
    _plot_repeats(repeats, audit)
    figure.suptitle(f"Audit of {_short(audit.source, 90)}: {audit.verdict}", color=_COLOURS[audit.verdict], size=15)
    figure.savefig(path, dpi=110)


def _plot_probes(axes: "Axes", audit: Audit) -> None:
    """Accuracy of each rule with its interval, the majority class of the same posts as a bar across."""
    scores = audit.scores[::-1]
    for place, scored in enumerate(scores):
        colour = _COLOURS[scored.level]
        axes.barh(
            place, 100 * scored.accuracy, height=0.62, color=colour, alpha=0.85 if scored.level != "clean" else 0.4
        )
        ends = [[100 * (scored.accuracy - scored.accuracy_low)], [100 * (scored.accuracy_high - scored.accuracy)]]
        axes.errorbar(100 * scored.accuracy, place, xerr=ends, color=colour, capsize=3, lw=1.4)
        majority = 100 * scored.majority_accuracy
        axes.plot([majority, majority], [place - 0.42, place + 0.42], color=_MAJORITY, lw=2)
        label = f"{100 * scored.accuracy:.1f} %" + ("" if scored.level == "clean" else f"  {scored.level}")
        axes.text(102, place, label, va="center", size=9, color=colour if scored.level != "clean" else "#444444")
    names = [scored.name + (f" ({scored.posts:,})" if scored.name.startswith("copies") else "") for scored in scores]
    axes.set_yticks(range(len(scores)), names, size=9)
    axes.set_xlim(0, 118)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(f"accuracy on {audit.scored} (%), simultaneous 95 % intervals; black: the most common class")
    axes.set_title("What rules that ignore meaning score", loc="left")
    _plain(axes)


def _plot_tokens(axes: "Axes", audit: Audit) -> None:
    details = next((s.details for s in audit.scores if s.details and "tokens" in s.details), None)
    axes.set_title("Tokens of one class only, posts in train", loc="left")
    if not details or not details["number"]:
        return _nothing(axes, "none")
    shown = details["tokens"][:_SHOWN_TOKENS][::-1]
    classes = sorted({token["class"] for token in shown})
    for place, token in enumerate(shown):
        colour = f"C{classes.index(token['class']) % 10}"
        axes.barh(place, token["train"], color=colour, height=0.7, alpha=0.85)
        axes.text(token["train"], place, f" {token['train']:,}", va="center", size=8)
    axes.set_yticks(range(len(shown)), [_plain_text(_short(token["token"], 24)) for token in shown], size=9)
    axes.margins(x=0.12)
    handles = [axes.barh(0, 0, color=f"C{index % 10}") for index in range(len(classes))]
    axes.legend(handles, [_plain_text(_short(name, 24)) for name in classes], loc="lower right", frameon=False)
    _plain(axes)


def _plot_repeats(axes: "Axes", audit: Audit) -> None:
    axes.set_title("Posts that occur again, exactly", loc="left")
    names = [name for name, counts in audit.repeats.items() if any(counts.values())][::-1]
    if not names:
        return _nothing(axes, "none")
    places = np.arange(len(names))
    for offset, (what, colour) in enumerate((("image", "#8fb3cf"), ("text", "#4c86b8"), ("whole post", "#c0392b"))):
        numbers = [audit.repeats[name][what] for name in names]
        axes.barh(places + 0.26 * (offset - 1), numbers, height=0.24, color=colour, label=what)
        for place, number in zip(places, numbers):
            if number:
                axes.text(number, place + 0.26 * (offset - 1), f" {number:,}", va="center", size=8)
    axes.set_yticks(places, names, size=9)
    axes.margins(x=0.12)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="best", frameon=False)
    _plain(axes)


def _nothing(axes: "Axes", text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#444444", size=12)
    axes.set_xticks([])
    axes.set_yticks([])
    _plain(axes)


def _plain(axes: "Axes") -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _plain_text(text: str) -> str:
    """The text with its dollar signs escaped: matplotlib takes them for the delimiters of a formula."""
    return text.replace("$", r"\$")


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
