"""Evidence in the forms that most attacks bring.

What was recovered of an input, how many of something were found, and how many tries got through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from codream_protocols.errors import ProtocolError
from secure_codream.threats.laboratory.attack import Evidence
from secure_codream.threats.laboratory.defences import ALL, Defences

Vector = np.ndarray[Any, Any]
LEAST_RECOVERED = 0.1  # share of coordinates; one of them is guessed with a probability of 2^-modulus_bits


def said(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}"


def first_said(errors: Sequence[BaseException]) -> str:
    """The first of some errors in one line, or nothing."""
    return said(errors[0]) if errors else ""


def recovered(attempt: Callable[[], tuple[Vector, Vector]], *, whose: str = "the victim's input") -> Evidence:
    """How much of a hidden vector an attempt brings to light, compared bit by bit.

    Args:
        attempt: returns what the adversary computed, and what is true; a refusal ends it with nothing.
        whose: what the vector is.
    """
    measure = f"coordinates of {whose} recovered bit by bit, share"
    try:
        guess, truth = attempt()
    except ProtocolError as error:
        learned = f"nothing about {whose}: it was refused"
        return Evidence(measure=measure, value=0.0, success=LEAST_RECOVERED, learned=learned, refusal=said(error))
    share = float(np.mean(guess.astype(np.int64) == truth.astype(np.int64)))
    learned = f"{share:.0%} of {whose}" if share else f"nothing about {whose}: what it computed is noise"
    return Evidence(measure=measure, value=share, success=LEAST_RECOVERED, learned=learned)


def numbered(measure: str, number: float, *, found: str, otherwise: str, refusal: str = "") -> Evidence:
    """How many there are of what there should be none of.

    Args:
        measure: what is counted.
        number: how many.
        found: what the adversary has learnt if there are any.
        otherwise: what is said if there are none.
        refusal: see `Evidence`.
    """
    learned = found if number else otherwise
    return Evidence(measure=measure, value=float(number), success=0.0, learned=learned, refusal=refusal)


@dataclass(frozen=True)
class Try:
    """One of several ways to reach a goal, and the defences that stand against just this one.

    Attributes:
        attempt: given which defences stand, returns whether it got through; a refusal says that it did not.
        defences: in the control these are off and no others.
    """

    attempt: Callable[[Defences], bool]
    defences: tuple[str, ...]


def counted(tries: Mapping[str, Callable[[], bool] | Try], *, what: str, defences: Defences = ALL) -> Evidence:
    """How many of several tries got through.

    Args:
        tries: name -> what returns whether it got through; a refusal says that it did not.
        what: what is tried, in the plural.
        defences: which stand; for a `Try` all but those of its own that are off.
    """
    through, refusals = {}, Counter[str]()
    last = ""
    for name, one in tries.items():
        through[name] = False
        try:
            if isinstance(one, Try):
                through[name] = one.attempt(Defences(defences.off & set(one.defences)))
            else:
                through[name] = one()
        except ProtocolError as error:
            refusals[type(error).__name__] += 1
            last = last or said(error)
    got = [name for name, success in through.items() if success]
    kinds = ", ".join(f"{count} x {kind}" for kind, count in refusals.most_common())
    refusal = last if len(tries) == 1 else kinds
    if not got and len(tries) == 1:
        learned = f"nothing: refused, or without effect: {next(iter(tries))}"
    elif not got:
        learned = f"nothing: each of {len(tries)} {what} was refused or had no effect"
    elif len(got) == len(tries) > 4:
        learned = f"all {len(tries)} {what} get through"
    else:
        learned = f"what gets through: {', '.join(got)}"
    return Evidence(
        measure=f"{what} that get through, of {len(tries)}",
        value=float(len(got)),
        success=0.0,
        learned=learned,
        refusal=refusal,
        tries=through,
    )


def of_all(tries: Mapping[str, Try]) -> tuple[str, ...]:
    """Every defence that stands against one of these tries, once."""
    return tuple(dict.fromkeys(name for one in tries.values() for name in one.defences))
