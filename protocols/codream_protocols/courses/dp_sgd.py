"""DP-SGD through the ring: one model, whose every step has the noise of all clients together, once.

A round is an epoch of `steps` sums. In each, a client samples its records (each by itself, with probability
`sample_rate`), sums their gradients, each clipped to `max_grad_norm` and rounded, and adds its share of noise
(`record_noise`). The sum over `batch_size`, never over how many took part, moves the weights, which everybody computes
alike. This is what DP-SGD on all data in one place has, without the place.

All that noise and claim follow from is a constant of the charter, and one for all: rate, steps, divisor, clip, delta.
There is no histogram of labels, no metrics and no training beforehand, so nothing else is released; the first weights
follow from the epoch's seed. The noise is solved for all rounds and `spare_rounds` more, as integer orders count
(`renyi`): an epoch that fails was paid for as far as it got, and its steps are made anew from the last certified state.

What a seed, a sum and a state may be is public; samples, rounding and noise are each client's secret, never kept.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le, Lt, doc

from codream_protocols.course import Arrays, Publication, State, Sums
from codream_protocols.courses.layouts import Layout, check_layout, initial_weights, length_of, trained
from codream_protocols.courses.numbers import MeanOfWeights, bounded, kept_of_mean
from codream_protocols.courses.rounds import Rounds
from codream_protocols.renyi import multiplier_for
from codream_protocols.settings import MOST, Settings, SettingsError
from codream_protocols.specs import Block, VectorSpec

GRADIENT = "gradient"
WEIGHTS, AVERAGE, VELOCITY, TAKEN = "weights", "average", "velocity", "taken"
MOST_STEPS = 100
"""Of an epoch: more would be lost with one that fails."""
MOST_PLANNED = 4096
"""Steps of a federation: each is a charge in a ledger, of which a line has no more."""


class DPSGDOptions(Settings):
    """What `[dp_sgd]` and its course share."""

    epsilon: Annotated[float, Gt(0), Le(1000), doc("what all rounds together may cost a record, at `delta`")]
    delta: Annotated[float, Gt(0), Le(0.01), doc("chance that the bound fails; well below one over a client's images")]
    sample_rate: Annotated[
        float, Gt(0), Le(1), doc("with which probability a record takes part in a step, at every client")
    ]
    batch_size: Annotated[
        float,
        Gt(0),
        Le(1e9),
        doc("what a step's sum is divided by: about `sample_rate` times the images of all clients, and no count"),
    ]
    steps: Annotated[int, Ge(1), Le(MOST_STEPS), doc("secure steps of a round; all rounds have as many")] = MOST_STEPS
    spare_rounds: Annotated[int, Ge(0), Le(1000), doc("rounds that may fail and be made again within the budget")] = 1
    max_grad_norm: Annotated[
        float, Ge(1e-6), Le(MOST), doc("Euclidean norm to which each record's gradient is clipped")
    ] = 0.3
    coordinate_bound: Annotated[
        float,
        Ge(1),
        Le(10_000),
        doc("bound of one coordinate of a client's sum of clipped gradients, in units of `max_grad_norm`"),
    ] = 64.0
    lr: Annotated[float, Gt(0), Le(MOST), doc("rate of SGD, for the sum over `batch_size`")] = 2.0
    momentum: Annotated[float, Ge(0), Lt(1), doc("of SGD")] = 0.0
    averaging: MeanOfWeights = 0.0


class DPSGDSettings(DPSGDOptions):
    """The same, of a federation: what is trained, and for how long."""

    layout: Annotated[Layout, doc("the model's trained parameters, in order")]
    rounds: Annotated[int, Ge(1), doc("epochs of secure aggregation")]
    bound: Annotated[float, Gt(0), Le(MOST), doc("bound of a parameter")] = 100.0

    def _check(self) -> None:
        check_layout(self.layout)
        if trained(self.layout) != self.layout:
            raise SettingsError("layout has running statistics, which mix records; a model without is needed")
        planned = (self.rounds + self.spare_rounds) * self.steps
        if planned > MOST_PLANNED:
            raise SettingsError(
                f"{planned:,} steps are planned, spare rounds included; {MOST_PLANNED:,} or fewer are allowed, since "
                "each is a charge of its own in every ledger; take fewer rounds, or a larger sample_rate in fewer steps"
            )


class DPSGD(Rounds):
    """DP-SGD through the ring as a course; see the module.

    State and publication: `weights` float32 and `velocity` float64, both (length,), `taken` int64 (1,), how many steps
    were taken; with `averaging` also `average` float32 (length,). Task `gradient` shows `weights`.

    Args:
        settings: see `DPSGDSettings`.
    """

    def __init__(self, settings: DPSGDSettings) -> None:
        super().__init__(settings.rounds, (GRADIENT,) * settings.steps, metrics=False)
        self.settings = settings
        self.noise_multiplier = multiplier_for(
            settings.epsilon, settings.delta, settings.sample_rate, self.planned_steps
        )

    @property
    def planned_steps(self) -> int:
        """Steps that the noise is solved for: of all rounds, and of the spare ones."""
        return (self.settings.rounds + self.settings.spare_rounds) * self.settings.steps

    def start(self, seed: bytes, certified: int, last: Publication | None) -> State:
        """See `Course`: `initial_weights` of the seed, or what was published last.

        Raises:
            LocalProtocolError: a seed of another size than 32 bytes.
        """
        if last is not None:
            return dict(last)
        weights = bounded(initial_weights(self.settings.layout, seed), self.settings.bound)
        state = {WEIGHTS: weights, VELOCITY: np.zeros(len(weights)), TAKEN: np.zeros(1, dtype=np.int64)}
        return {**state, AVERAGE: weights} if self.settings.averaging else state

    def publication(self, state: State) -> Publication:
        """See `Course`: the state, from which the next epoch goes on."""
        return state

    def model(self, publication: Publication) -> Arrays:
        """The weights to use, by the name `weights`."""
        return {WEIGHTS: publication[AVERAGE if self.settings.averaging else WEIGHTS]}

    def _spec(self, name: str, honest: int) -> VectorSpec:
        settings = self.settings
        bound = float(settings.coordinate_bound)
        block = Block(GRADIENT, length_of(settings.layout), bound * settings.max_grad_norm)
        return VectorSpec(GRADIENT, (block,)).with_record_noise(
            float(settings.max_grad_norm), self.noise_multiplier, honest, bound
        )

    def _shown(self, state: State) -> Arrays:
        return {WEIGHTS: state[WEIGHTS]}

    def _absorbed(self, name: str, state: State, step: int, sums: Sums, count: int) -> State:
        settings = self.settings
        velocity = settings.momentum * state[VELOCITY] + sums[GRADIENT] / settings.batch_size
        weights = bounded(state[WEIGHTS].astype(np.float64) - settings.lr * velocity, settings.bound)
        following = {WEIGHTS: weights, VELOCITY: velocity, TAKEN: state[TAKEN] + 1}
        if not settings.averaging:
            return following
        kept = kept_of_mean(settings.averaging, int(state[TAKEN][0]))
        mean = kept * state[AVERAGE].astype(np.float64) + (1 - kept) * weights.astype(np.float64)
        return {**following, AVERAGE: bounded(mean, settings.bound)}
