"""What an attack is, what it brings back, and how a verdict follows from that; nothing here asserts an outcome.

A user's own attack is a class with the attributes of `Attack`, given as `module:name` to `secure-codream threats`;
`examples/own_attack.py` is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.defences import Defences

LEAST_DIFFERENCE = 0.25  # of a limit's control, as a share of the larger value, where both attempts work


@dataclass(frozen=True, eq=False)
class Picture:
    """An image for the report: (H, W) or (H, W, 3), values 0 to 1."""

    caption: str
    pixels: np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an attack brought back.

    Attributes:
        measure: what `value` counts, with its unit: "coordinates of the victim's input recovered, share".
        value: how much.
        success: the attack has worked if the value, or where there is one the interval's lower end, is above this.
        interval: of confidence, (lower, upper), where the value is an estimate.
        learned: one sentence for a reader: what the adversary holds now.
        refusal: the typed error that stopped it, if one did ("SecondSurvivorSet: ...").
        pictures: what it saw.
        tries: where the goal was tried in several ways, each way and whether it got through.
    """

    measure: str
    value: float
    success: float
    learned: str
    interval: tuple[float, float] | None = None
    refusal: str = ""
    pictures: tuple[Picture, ...] = field(default=(), repr=False)
    tries: Mapping[str, bool] = field(default_factory=dict, repr=False)

    @property
    def worked(self) -> bool:
        """Whether the attack reached its goal."""
        return (self.value if self.interval is None else self.interval[0]) > self.success

    @property
    def covered(self) -> bool:
        """Whether it shows, as a control, that there was something to stop: in each of its ways, where it has several.

        A way that fails without its defence too shows nothing of it, however many others get through.
        """
        return self.worked and all(self.tries.values())


class Attack(Protocol):
    """An adversary with a goal.

    Attributes:
        name: unique, lower case with hyphens.
        adversary: who: "malicious server", "network", "c clients with the server", ...
        goal: what it is after, one sentence.
        paper: where the attack is from; empty if it is folklore.
        promises: keys of `promises.PROMISES` that it tests; with one of `L..` its success is expected and reported.
        defences: what stands against it; the control runs with all of these off.
        quick: whether it is part of `--quick`.
    """

    name: str
    adversary: str
    goal: str
    paper: str = ""
    promises: tuple[str, ...]
    defences: tuple[str, ...]
    quick: bool = True

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Attack the real code with these defences; everything random comes from the laboratory's seed.

        Raises:
            Inapplicable: the laboratory's cohort leaves no room for it.
        """
        ...


class Verdict(Enum):
    """What the two runs of an attack say."""

    DEFENDED = "defended"  # it fails, and works without the defence
    BROKEN = "BROKEN"  # it works against a promise
    UNPROVEN = "unproven"  # it fails, but without the defence as well: this says nothing
    LIMIT = "not promised"  # it works, as documented; the control shows what stops it
    INAPPLICABLE = "no room"  # these settings leave it no room to begin
    CRASHED = "failed to run"  # the attack's own code failed

    @property
    def is_alarming(self) -> bool:
        """Whether somebody has to look: a promise is broken, or nothing was shown."""
        return self in (Verdict.BROKEN, Verdict.UNPROVEN, Verdict.CRASHED)


def judge(attack: Attack, evidence: Evidence, control: Evidence) -> Verdict:
    """The verdict on an attack from its evidence and its control's.

    For a limit the control is the run in which whatever bounds it is in place or taken away, as the attack says;
    its attempt must work, and the control must fail or be clearly elsewhere, or the documentation claims a weakness
    that is none.
    """
    limit = any(key.startswith("L") for key in attack.promises)
    if limit:
        apart = not control.worked or abs(evidence.value - control.value) >= LEAST_DIFFERENCE * max(
            abs(evidence.value), abs(control.value)
        )
        return Verdict.LIMIT if evidence.worked and apart else Verdict.UNPROVEN
    if evidence.worked:
        return Verdict.BROKEN
    return Verdict.DEFENDED if control.covered else Verdict.UNPROVEN
