"""Arithmetic on states: in doubles, elementwise, one correctly rounded operation after the other.

States hold single precision, which an operation's result is rounded to once, at the end. Adam: Kingma and Ba, ICLR
2015. No moment's bias is corrected with a power: the powers of the decay rates are part of the state and grow by one
multiplication a step.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Lt, doc

from codream_protocols.course import Array, State

Doubles = np.ndarray[Any, np.dtype[np.float64]]

LEAST_WEIGHT = 1e-6
"""Sums are never divided by less: the sum of weights that are not there, or that were lied about, may be 0 or below."""
EPSILON = 1e-8
MOMENTS = ("first", "second", "decays")
MeanOfWeights = Annotated[
    float,
    Ge(0),
    Lt(1),
    doc("how much of the mean of earlier weights stays in a step's; that mean is the model; 0 takes the last ones"),
]
FIRST_STEPS = 10.0
"""The first weights are no model yet: of their mean so little stays that after as many steps it is half."""


def bounded(values: Array, bound: float | Array, low: Array | None = None) -> Array:
    """Values within [low, bound], or [-bound, bound], as float32; bounds are rounded first, so that they hold.

    Where a bound is 0, the sign of a zero would depend on the machine: adding 0 leaves no negative one.
    """
    high = _single(bound)
    least = -high if low is None else _single(low)
    found: Array = np.clip(values.astype(np.float64), least, high).astype(np.float32) + np.float32(0)
    return found


def weighted_mean(total: Array, weight: Array, bound: float) -> Doubles:
    """A sum of weighted values over the sum of the weights, shape (1,): within [-bound, bound], as the values are."""
    mean: Doubles = np.clip(total / np.maximum(weight, LEAST_WEIGHT), -bound, bound)
    return mean


def kept_of_mean(averaging: float, taken: int) -> float:
    """How much of the mean of earlier weights stays in that of the next step, after `taken` steps (0 or more)."""
    return min(averaging, taken / (taken + FIRST_STEPS))


def fresh_moments(shape: tuple[int, ...]) -> dict[str, Array]:
    """Adam's state before its first step: both moments, and the powers of both decay rates (2,); float64."""
    return {"first": np.zeros(shape), "second": np.zeros(shape), "decays": np.ones(2)}


def adam(state: State, mean: Doubles, rate: float, betas: tuple[float, float]) -> tuple[Doubles, dict[str, Array]]:
    """One step of Adam along `mean`.

    Args:
        state: holds `MOMENTS`.
        mean: the direction, shape of the moments.
        rate: step size.
        betas: decay rates of the first and of the second moment.

    Returns:
        The move along `mean`, and the moments after it.
    """
    first = betas[0] * state["first"] + (1 - betas[0]) * mean
    second = betas[1] * state["second"] + (1 - betas[1]) * (mean * mean)
    decays = state["decays"] * np.array(betas)
    remaining = 1 - decays
    move = rate * (first / remaining[0]) / (np.sqrt(second / remaining[1]) + EPSILON)
    return move, {"first": first, "second": second, "decays": decays}


def _single(values: float | Array) -> Doubles:
    return np.asarray(values, dtype=np.float32).astype(np.float64)
