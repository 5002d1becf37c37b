"""Accuracy against epsilon: a comparison whose algorithms are methods under a budget, `codream@2`, `isolated@2`, ...

    [sweep]
    epsilons = [2, 4, 8, "none"]
    methods = ["isolated", "codream", "centralised"]

    [privacy]
    delta = 1e-5

Each method with each epsilon becomes a variant with the `[privacy]` table and that epsilon; "none" takes the method
without privacy, `codream`, with `[learning]` as it is. All else (partitions, seeds, data, dreams) is a comparison's.
Cells run method by method, each with all epsilons, so that clients alone are trained before the federation that goes on
from the same models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import doc
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

Method = Literal["isolated", "codream", "centralised"]
MARK = "@"
MOST_EPSILON = 1e6


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str | int | float) else value


def _budget(value: Any) -> float | str:
    if value == "none":
        return "none"
    try:
        epsilon = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        epsilon = math.nan
    if not 0 < epsilon <= MOST_EPSILON:
        raise ValueError(f"{value!r} is no budget; allowed are numbers above 0, up to {MOST_EPSILON:g}, and 'none'")
    return epsilon


class SweepTable(BaseModel):
    """`[sweep]`: methods and budgets; each pair of them is an algorithm of the comparison."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epsilons: Annotated[
        tuple[Annotated[float | Literal["none"], PlainValidator(_budget)], ...],
        BeforeValidator(_listed),
        Field(min_length=1),
        doc('budgets of a record, each above 0; "none" takes the method without privacy'),
    ] = (1.0, 2.0, 4.0, 8.0, 16.0, "none")
    methods: Annotated[
        tuple[Method, ...], BeforeValidator(_listed), Field(min_length=1), doc("what is run under each budget")
    ] = ("isolated", "codream", "centralised")

    @property
    def names(self) -> tuple[str, ...]:
        """Every method with every epsilon, by epsilon."""
        return tuple(name_of(method, epsilon) for epsilon in self.epsilons for method in self.methods)

    def variants(self, privacy: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
        """Name -> a variant's table, or None for an algorithm as it is."""
        order = [method for method in ("isolated", "centralised", "codream") if method in self.methods]
        return {
            name_of(method, epsilon): None
            if epsilon == "none"
            else {"algorithm": f"{method}-dp", "options": {"privacy": {**privacy, "epsilon": epsilon}}}
            for method in order
            for epsilon in self.epsilons
        }


def name_of(method: str, epsilon: float | str) -> str:
    """`codream@2`, or `codream` without privacy."""
    return method if epsilon == "none" else f"{method}{MARK}{epsilon:g}"


def split_name(algorithm: str) -> tuple[str, float | None]:
    """Method and epsilon of an algorithm's name; None for one without privacy."""
    method, mark, epsilon = algorithm.partition(MARK)
    return method, float(epsilon) if mark else None


def reference_of(algorithm: str, reference: str) -> str:
    """What `isolated` or `centralised` is called under the budget that the algorithm has."""
    _, mark, epsilon = algorithm.partition(MARK)
    return f"{reference}{mark}{epsilon}"


def is_reference(algorithm: str) -> bool:
    """Whether the algorithm is a floor or a ceiling, under whichever budget."""
    return split_name(algorithm)[0] in ("isolated", "centralised")
