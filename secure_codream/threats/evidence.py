"""Evidence in the two forms that most attacks bring: what was recovered of an input, and how many tries got through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from codream_protocols.errors import ProtocolError
from secure_codream.threats.attack import Evidence

Vector = np.ndarray[Any, Any]
LEAST_RECOVERED = 0.1  # share of coordinates; one of them is guessed with a probability of 2^-modulus_bits


def said(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}"


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


def counted(tries: Mapping[str, Callable[[], bool]], *, what: str) -> Evidence:
    """How many of several tries got through.

    Args:
        tries: name -> what returns whether it got through; a refusal says that it did not.
        what: what is tried, in the plural.
    """
    through, refusals = [], Counter[str]()
    last = ""
    for name, attempt in tries.items():
        try:
            if attempt():
                through.append(name)
        except ProtocolError as error:
            refusals[type(error).__name__] += 1
            last = last or said(error)
    kinds = ", ".join(f"{count} x {kind}" for kind, count in refusals.most_common())
    refusal = last if len(tries) == 1 else kinds
    if not through and len(tries) == 1:
        learned = f"nothing: refused, or without effect: {next(iter(tries))}"
    elif not through:
        learned = f"nothing: each of {len(tries)} {what} was refused or had no effect"
    elif len(through) == len(tries) > 4:
        learned = f"all {len(tries)} {what} get through"
    else:
        learned = f"what gets through: {', '.join(through)}"
    return Evidence(
        measure=f"{what} that get through, of {len(tries)}",
        value=float(len(through)),
        success=0.0,
        learned=learned,
        refusal=refusal,
    )
