"""What an audit writes for people and programs: audit.json, audit.md, the lines on the screen and in a model card."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data.posts import Posts
from ..support.files import read_mapping, write_json, write_text
from ..support.markdown import markdown_table
from ..support.messages import in_a_cell
from ..support.run_files import AUDIT_JSON, AUDIT_MD, AUDIT_PNG
from .audit import Audit, percent
from .plots import HOW_TO_GET_IT, is_available, plot_audit
from .probes import FAMILY_LEVEL


MEANING = {
    "leak": "do not trust a score on this data",
    "warning": "read a score on this data with the warnings beside it",
    "note": "nothing here speaks against trusting a score, but see the notes",
    "clean": "none of the rules tried predicts the labels",
}
_SHOWN_TOKENS = 12
_KEYS = {"image": "picture"}  # of audit.json, which programs read: its names stay


def write_audit(folder: str | Path, audit: Audit) -> str:
    """Writes audit.json, audit.md and, with matplotlib, audit.png into `folder`. Returns what the screen shows."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / AUDIT_JSON, as_dict(audit))
    has_plots = is_available()
    if has_plots:
        plot_audit(audit, folder / AUDIT_PNG)
    else:
        (folder / AUDIT_PNG).unlink(missing_ok=True)  # an earlier audit's
    body = as_markdown(audit)
    plots = f"\n![The audit, plotted]({AUDIT_PNG})\n" if has_plots else ""
    write_text(folder / AUDIT_MD, f"# Audit\n\n{body}\n{plots}")
    names = ", ".join([AUDIT_JSON, AUDIT_MD, *([AUDIT_PNG] if has_plots else [])])
    return f"\n{body}\n\nThe audit is in {folder}: {names}." + ("" if has_plots else f" {HOW_TO_GET_IT}")


def as_dict(audit: Audit) -> dict[str, Any]:
    """The audit for programs; see docs/audit.md."""
    return {
        "verdict": audit.verdict,
        "source": audit.source,
        "posts": audit.counts,
        "scored_split": audit.scored,
        "classes": audit.classes,
        "findings": [asdict(finding) for finding in audit.findings],
        "probes": [scored.as_dict() for scored in audit.scores],
        "repeats": {
            name: {_KEYS.get(what, what): count for what, count in counts.items()}
            for name, counts in audit.repeats.items()
        },
        "conflicting_labels": audit.conflicts,
        "label_balance": audit.balance,
        "cut_texts": audit.cut,
        "pictures": audit.images,
    }


def as_markdown(audit: Audit) -> str:
    """Verdict, findings and tables."""
    parts = [
        f"**Verdict: {audit.verdict}**: {MEANING[audit.verdict]}.",
        f"{audit.source[:1].upper()}{audit.source[1:]}: {audit.counts} posts. Rules are fitted on train and scored "
        f"on {audit.scored}; a class is the {audit.classes}.",
    ]
    findings = [f"- **{finding.level}**, {finding.about}: {finding.text}" for finding in audit.findings]
    parts.append("\n".join(findings) or "Nothing was found.")
    parts += ["## Rules", _probe_table(audit), _note(audit)]
    parts += _token_part(audit)
    parts += ["## Repeats", _repeats_table(audit), _conflict_line(audit)]
    parts += ["## Labels and lengths", *_balance_part(audit), *_cut_part(audit), *_image_part(audit)]
    return "\n\n".join(parts)


def _probe_table(audit: Audit) -> str:
    rows = [["rule", "verdict", "posts", "accuracy", "macro F1", "majority", "lift", "interval of the lift"]]
    for scored in audit.scores:
        rows.append(
            [
                scored.name,
                scored.level,
                f"{scored.posts:,}",
                percent(scored.accuracy),
                f"{scored.f1_macro:.3f}",
                percent(scored.majority_accuracy),
                f"{100 * scored.lift + 0.0:+.1f}",
                f"{100 * scored.lift_low:+.1f} to {100 * scored.lift_high:+.1f}",
            ]
        )
    return markdown_table(rows)


def _note(audit: Audit) -> str:
    number = len(audit.scores) + sum(scored.name.startswith("copies") for scored in audit.scores)
    return (
        f"Lifts are percentage points above the most common class. The {number} intervals hold together with "
        f"{FAMILY_LEVEL:.0%} confidence.".replace("%", " %")
    )


def _token_part(audit: Audit) -> list[str]:
    details = next((s.details for s in audit.scores if s.details and "tokens" in s.details), None)
    if not details or not details["number"]:
        return []
    rows = [["token", "only in", "posts in train", f"posts in {audit.scored}"]]
    for token in details["tokens"][:_SHOWN_TOKENS]:
        there = ", ".join(f"{name} {count}" for name, count in token["scored"].items()) or "0"
        rows.append(
            [f"`{_in_code(token['token'])}`", in_a_cell(token["class"]), f"{token['train']:,}", in_a_cell(there)]
        )
    more = details["number"] - len(rows) + 1
    return [
        "## Tokens of one class only",
        markdown_table(rows),
        *([f"and {more:,} more that no post of another class has in train."] if more > 0 else []),
    ]


def _in_code(token: str) -> str:
    return token.replace("`", "'").replace("|", "\\|")


def _repeats_table(audit: Audit) -> str:
    titles = ["whole post", "text", "image"]
    rows = [["posts that occur again, exactly", *titles]]
    for name, counts in audit.repeats.items():
        rows.append([name, *(f"{counts[title]:,}" for title in titles)])
    return markdown_table(rows)


def _conflict_line(audit: Audit) -> str:
    counts = audit.conflicts
    if not counts["posts"]:
        return "No two equal posts have different labels."
    return f"{counts['posts']:,} posts in {counts['groups']:,} groups are the same with different labels."


def _balance_part(audit: Audit) -> list[str]:
    splits = list(audit.balance)
    rows = [["class", *splits]]
    totals = {split: max(1, sum(audit.balance[split].values())) for split in splits}
    names = sorted(audit.balance[splits[0]], key=lambda name: -audit.balance[splits[0]][name])
    for name in names[:20]:
        cells = [f"{audit.balance[of][name]:,} ({percent(audit.balance[of][name] / totals[of])})" for of in splits]
        rows.append([in_a_cell(name), *cells])
    more = [f"and {len(names) - 20:,} more classes."] if len(names) > 20 else []
    return [markdown_table(rows), *more]


def _cut_part(audit: Audit) -> list[str]:
    cuts = {name: cut for name, cut in audit.cut.items() if name != "max_seq_length"}
    if not cuts:
        return []
    shares = ", ".join(f"{percent(c['posts'])} of {n} ({percent(c['tokens'])} of its tokens)" for n, c in cuts.items())
    return [f"--max_seq_length {audit.cut['max_seq_length']} cuts the texts of {shares}."]


def _image_part(audit: Audit) -> list[str]:
    counts = audit.images
    if not any(counts.values()):
        return []
    return [
        f"{counts['read']:,} different images were read, {counts['unreadable']:,} can't be; "
        f"{counts['missing']:,} that posts name are missing or left out."
    ]


def audit_for_card(folder: str | Path, posts: Posts) -> str:
    """
    What a model card reports of the audit in its folder; empty if there is none, or one of other posts.

    Args:
        folder: the checkpoint folder
        posts: those that the checkpoint was trained on
    """
    path = Path(folder) / AUDIT_JSON
    try:
        audit = read_mapping(path)
        same = audit["source"] == posts.source and audit["posts"] == posts.counts()
        findings = [f"- {finding['level']}, {finding['about']}: {finding['text']}" for finding in audit["findings"]]
        verdict = f"{audit['verdict']}, {MEANING[audit['verdict']]}"
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not one of ours
        return ""
    if not same:
        return ""
    return "\n".join([f"\n\nAudit of the data (`--do_audit`): {verdict}.", *([""] if findings else []), *findings])
