"""The report of the suite: one self-contained HTML page, in the looks of a run's report; pictures are part of it.

This module turns findings into facts and figures; the words are in `templates/threats.html.j2`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from secure_codream.reports.files import write_whole
from secure_codream.reports.pages import page_environment
from secure_codream.reports.pictures import data_uri
from secure_codream.reports.words import duration
from secure_codream.threats.laboratory.attack import Evidence, Picture, Verdict
from secure_codream.threats.promises import BY_KEY, Promise
from secure_codream.threats.suite import FAMILIES, Finding, by_promise


@dataclass(frozen=True)
class PromiseView:
    """A promise or limit, and what the attacks on it say in one word."""

    promise: Promise
    findings: list[Finding]
    verdict: Verdict | None


def write_page(path: Path, findings: Sequence[Finding], summary: Mapping[str, Any]) -> Path:
    """Write the report.

    Args:
        path: of the file.
        findings: what came of each attack.
        summary: what `summary.json` says of the run.
    """
    families = {
        FAMILIES.get(family, "Attacks of your own"): [one for one in findings if one.entry.family == family]
        for family in dict.fromkeys(finding.entry.family for finding in findings)
    }
    views = [PromiseView(BY_KEY[key], found, _worst(found)) for key, found in by_promise(findings).items()]
    environment = page_environment(amount=amount, uri=_shown, duration=duration, colour=_colour, code=_code)
    html = environment.get_template("threats.html.j2").render(
        s=summary,
        headline=headline(findings),
        families=families,
        promises=[view for view in views if not view.promise.is_limit],
        limits=[view for view in views if view.promise.is_limit],
        alarming=[finding for finding in findings if finding.verdict.is_alarming],
        total=len(findings),
    )
    return write_whole(path, html.encode())


def headline(findings: Sequence[Finding]) -> str:
    """The result in words."""
    broken = [one.entry.attack.name for one in findings if one.verdict is Verdict.BROKEN]
    shown = sum(one.verdict is Verdict.DEFENDED for one in findings)
    unshown = sum(one.verdict in (Verdict.UNPROVEN, Verdict.CRASHED) for one in findings)
    limits = sum(one.verdict is Verdict.LIMIT for one in findings)
    if broken:
        words = f"A promise is broken: {', '.join(broken)}."
    else:
        words = f"{shown} attacks fail against the code as deployed, and each works once its defence is taken out."
    if limits:
        words += (
            f" {limits} more {'works' if limits == 1 else 'work'}, as documented: nobody should rely on the opposite."
        )
    if unshown:
        words += f" {unshown} {'shows' if unshown == 1 else 'show'} nothing and must be looked at."
    return words


def _worst(findings: Sequence[Finding]) -> Verdict | None:
    """The most alarming verdict; None if no attack speaks of it."""
    order = [
        Verdict.BROKEN,
        Verdict.CRASHED,
        Verdict.UNPROVEN,
        Verdict.LIMIT,
        Verdict.DEFENDED,
        Verdict.INAPPLICABLE,
    ]
    return min((finding.verdict for finding in findings), key=order.index, default=None)


def amount(evidence: Evidence) -> str:
    """An evidence's value, and its interval, in a few digits; what is counted, in all."""
    if evidence.interval is None:
        return f"{evidence.value:,.0f}" if evidence.value.is_integer() else f"{evidence.value:,.4g}"
    return f"{evidence.value:,.3g} ({evidence.interval[0]:,.3g} to {evidence.interval[1]:,.3g})"


def _shown(picture: Picture) -> str:
    return data_uri(np.asarray(np.clip(255 * picture.pixels + 0.5, 0, 255), dtype=np.uint8))


def _colour(verdict: Verdict | None) -> str:
    """The badge's class."""
    if verdict is None:
        return "none"
    return {Verdict.DEFENDED: "defended", Verdict.LIMIT: "limit", Verdict.INAPPLICABLE: "none"}.get(verdict, "failed")


def _code(text: str) -> Markup:
    """Names between backticks, set as code."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(Markup("<code>{}</code>").format(p) if n % 2 else p for n, p in enumerate(parts))
