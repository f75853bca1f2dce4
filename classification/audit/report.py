"""What an audit leaves for people and programs: audit.json, audit.md, the lines on the screen and in a model card."""

import json
from dataclasses import asdict
from pathlib import Path

from ..support.markdown import markdown_table
from ..support.run_files import AUDIT_JSON, AUDIT_MD, AUDIT_PNG
from .audit import Audit, percent
from .plots import HOW_TO_GET_IT, draw_audit, is_available
from .probes import FAMILY_LEVEL


MEANING = {
    "leak": "do not trust a score on this data",
    "warning": "read a score on this data with the warnings beside it",
    "note": "nothing that should keep from trusting a score, but see the notes",
    "clean": "none of the rules tried tells the labels",
}
_SHOWN_TOKENS = 12


def write_audit(folder, audit: Audit) -> str:
    """Writes audit.json, audit.md and, with matplotlib, audit.png into `folder`. Returns what the screen shows."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / AUDIT_JSON).write_text(json.dumps(as_dict(audit), indent=2, ensure_ascii=False) + "\n", "utf-8")
    picture = is_available()
    if picture:
        draw_audit(audit, folder / AUDIT_PNG)
    else:
        (folder / AUDIT_PNG).unlink(missing_ok=True)  # an earlier audit's
    body = as_markdown(audit)
    image = f"\n![The audit in pictures]({AUDIT_PNG})\n" if picture else ""
    (folder / AUDIT_MD).write_text(f"# Audit\n\n{body}\n{image}", "utf-8")
    names = ", ".join([AUDIT_JSON, AUDIT_MD, *([AUDIT_PNG] if picture else [])])
    return f"\n{body}\n\nThe audit is in {folder}: {names}." + ("" if picture else f" {HOW_TO_GET_IT}")


def as_dict(audit: Audit) -> dict:
    """The audit for programs; see docs/audit.md."""
    return {
        "verdict": audit.verdict,
        "source": audit.source,
        "posts": audit.counts,
        "scored_split": audit.scored,
        "classes": audit.classes,
        "findings": [asdict(finding) for finding in audit.findings],
        "probes": [scored.as_dict() for scored in audit.scores],
        "repeats": audit.repeats,
        "conflicting_labels": audit.conflicts,
        "label_balance": audit.balance,
        "cut_texts": audit.cut,
        "pictures": audit.pictures,
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
    parts += ["## Labels and lengths", *_balance_part(audit), *_cut_part(audit), *_picture_part(audit)]
    return "\n\n".join(parts)


def _probe_table(audit):
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


def _note(audit):
    number = len(audit.scores) + sum(scored.name.startswith("copies") for scored in audit.scores)
    return (
        f"Lifts are percentage points above the most common class. The {number} intervals hold together with "
        f"{FAMILY_LEVEL:.0%} confidence.".replace("%", " %")
    )


def _token_part(audit):
    details = next((s.details for s in audit.scores if s.details and "tokens" in s.details), None)
    if not details or not details["number"]:
        return []
    rows = [["token", "only in", "posts in train", f"posts in {audit.scored}"]]
    for token in details["tokens"][:_SHOWN_TOKENS]:
        there = ", ".join(f"{name} {count}" for name, count in token["scored"].items()) or "0"
        rows.append([f"`{_in_code(token['token'])}`", _cell(token["class"]), f"{token['train']:,}", _cell(there)])
    more = details["number"] - len(rows) + 1
    return [
        "## Tokens on one side only",
        markdown_table(rows),
        *([f"and {more:,} more that stand in no posts of another class in train."] if more > 0 else []),
    ]


def _in_code(token):
    return token.replace("`", "'").replace("|", "\\|")


def _cell(text):
    return " ".join(text.replace("|", "\\|").split())


def _repeats_table(audit):
    titles = ["whole post", "text", "picture"]
    rows = [["posts that occur again, exactly", *titles]]
    for name, counts in audit.repeats.items():
        rows.append([name, *(f"{counts[title]:,}" for title in titles)])
    return markdown_table(rows)


def _conflict_line(audit):
    counts = audit.conflicts
    if not counts["posts"]:
        return "No two posts that are the same have different labels."
    return f"{counts['posts']:,} posts in {counts['groups']:,} groups are the same with different labels."


def _balance_part(audit):
    splits = list(audit.balance)
    rows = [["class", *splits]]
    totals = {split: max(1, sum(audit.balance[split].values())) for split in splits}
    names = sorted(audit.balance[splits[0]], key=lambda name: -audit.balance[splits[0]][name])
    for name in names[:20]:
        cells = [f"{audit.balance[of][name]:,} ({percent(audit.balance[of][name] / totals[of])})" for of in splits]
        rows.append([_cell(name), *cells])
    more = [f"and {len(names) - 20:,} more classes."] if len(names) > 20 else []
    return [markdown_table(rows), *more]


def _cut_part(audit):
    cuts = {name: cut for name, cut in audit.cut.items() if name != "max_seq_length"}
    if not cuts:
        return []
    told = ", ".join(f"{percent(c['posts'])} of {n} ({percent(c['tokens'])} of its tokens)" for n, c in cuts.items())
    return [f"--max_seq_length {audit.cut['max_seq_length']} cuts the texts of {told}."]


def _picture_part(audit):
    counts = audit.pictures
    if not any(counts.values()):
        return []
    return [
        f"{counts['read']:,} different pictures were read, {counts['unreadable']:,} can't be; "
        f"{counts['missing']:,} that posts name are missing or left out."
    ]


def audit_for_card(folder, posts) -> str:
    """
    What a model card says of the audit that lies in its folder; empty if there is none, or one of other posts.

    Args:
        folder: the checkpoint folder
        posts: `Posts` that the checkpoint was trained on
    """
    path = Path(folder) / AUDIT_JSON
    try:
        audit = json.loads(path.read_text("utf-8"))
        same = audit["source"] == posts.source and audit["posts"] == posts.counts()
        findings = [f"- {finding['level']}, {finding['about']}: {finding['text']}" for finding in audit["findings"]]
        verdict = f"{audit['verdict']}, {MEANING[audit['verdict']]}"
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not one of ours
        return ""
    if not same:
        return ""
    return "\n".join([f"\n\nAudit of the data (`--do_audit`): {verdict}.", *([""] if findings else []), *findings])
