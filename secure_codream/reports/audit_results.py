"""What an audit found: each adversary's success, and its lower bound beside the claimed upper bound."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from rich.table import Table

from secure_codream.reports.events import Amount, Count
from secure_codream.reports.summary import Share

POWER = 0.9


class AuditRow(msgspec.Struct, frozen=True, kw_only=True):
    """One adversary.

    Attributes:
        adversary: what it sees.
        method: "one run" or "two worlds", see `bounds`.
        auc, advantage, tpr_at_1_fpr: see `scores.Separation`.
        trials: canaries, or runs in both worlds together.
        right, guesses: of one run; of two worlds, right ones over all runs that were not used to set the threshold.
        epsilon_lower: what the guesses refute.
        epsilon_claimed: what the accountant says this adversary is held to.
        epsilon_most: what guesses without a fault would have shown; a claim above it cannot be refuted by this audit.
        power: how likely this row would refute the claim if the noise were half of what is claimed; None if unknown.
    """

    adversary: str
    method: str
    auc: Share
    advantage: Share
    tpr_at_1_fpr: Share
    trials: Count
    right: Count
    guesses: Count
    epsilon_lower: Amount
    epsilon_claimed: Amount
    epsilon_most: Amount
    power: Share | None = None

    @property
    def refuted(self) -> bool:
        """Whether the lower bound is above the claim."""
        return self.epsilon_lower > self.epsilon_claimed


class AuditResult(msgspec.Struct, frozen=True, kw_only=True):
    """An audit: `confidence` is that of all rows' bounds together; `settings` are what it ran with."""

    schema: Literal[1] = 1
    confidence: Share
    delta: Share
    noise_multiplier: Amount
    without_noise: bool
    rows: list[AuditRow]
    seconds: Amount
    settings: dict[str, Any]

    @property
    def refuted(self) -> list[AuditRow]:
        """The rows that refute the claim."""
        return [row for row in self.rows if row.refuted]

    @property
    def conclusive(self) -> bool:
        """Whether noise of half the size would have been refuted with a chance of `POWER` or more."""
        return any(row.power is not None and row.power >= POWER for row in self.rows)


def audit_table(result: AuditResult) -> Table:
    """Every adversary's figures, for a terminal."""
    table = Table(
        title=f"Audit at delta {result.delta:g}", title_justify="left", title_style="bold", caption_justify="left"
    )
    table.add_column("adversary sees", no_wrap=True)
    table.add_column("method", no_wrap=True)
    for heading in ("AUC", "advantage", "TPR at 1 % FPR", "right guesses", "epsilon at least", "claimed at most"):
        table.add_column(heading, justify="right")
    for row in result.rows:
        table.add_row(
            row.adversary,
            row.method,
            f"{row.auc:.3f}",
            f"{row.advantage:.3f}",
            f"{row.tpr_at_1_fpr:.3f}",
            f"{row.right} of {row.guesses}",
            f"{row.epsilon_lower:.3f}",
            f"{row.epsilon_claimed:.3f}",
            style="bold red" if row.refuted else None,
        )
    least = min(row.epsilon_most for row in result.rows)
    table.caption = (
        f"Lower bounds hold together with {100 * result.confidence:g} % confidence. Guesses without a fault would show "
        f"{least:.2f} or more. Noise of half the size is refuted with a chance of "
        f"{max((row.power for row in result.rows if row.power is not None), default=0.0):.0%}."
    )
    return table
