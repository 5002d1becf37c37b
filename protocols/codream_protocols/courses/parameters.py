"""Averaging of parameters: FedAvg (McMahan et al., AISTATS 2017) and its relatives.

A round is an epoch of `steps` sums. In each, a client trains the global model x on its own data, and sends the weighted
change w_i (y_i - x) and its weight w_i in (0, 1]; the mean is sum over sum, and neither is told of any client.

FedProx (Li et al., MLSys 2020) and MOON (Li, He, Song, CVPR 2021) differ in what clients do and not in what is summed.
SCAFFOLD (Karimireddy et al., ICML 2020) sums the changes of the clients' control variates beside those of the weights;
the mean control variate moves by their weighted mean, which is the paper's rule where all clients take part.

Range. A running variance moves a thousand times as far as a bias. So each tensor has a clip, and changes are sent in
units of it, within [-1, 1], with almost all of their bits. Clips are constants: one that followed the sums would have a
kink at every client's value. How much was clipped is a figure of each sum, so that people see when a clip is too small.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le, doc

from codream_protocols.charter import MAX_STEPS
from codream_protocols.course import Array, Arrays, Publication, State, Sums
from codream_protocols.courses.layouts import (
    Layout,
    check_layout,
    for_each,
    initial_weights,
    is_statistic,
    length_of,
    trained,
)
from codream_protocols.courses.numbers import LEAST_WEIGHT, bounded, weighted_mean
from codream_protocols.courses.rounds import Figures, Rounds
from codream_protocols.settings import MOST, Settings, SettingsError
from codream_protocols.specs import Block, VectorSpec

PARAMETERS = "parameters"
WEIGHTS, VARIATE = "weights", "variate"
PROXIMAL = 0.1  # FedProx's mu, of the paper's 0.001, 0.01, 0.1 and 1
CONTRAST, CONTRAST_TEMPERATURE = 0.1, 0.5  # MOON's mu, of the paper's 0.1, 1, 5 and 10, and its tau


Bound = Annotated[float, Gt(0), Le(MOST)]


class Averaging(Settings):
    """What `[averaging]` and its courses share."""

    steps: Annotated[
        int, Ge(1), Le(MAX_STEPS - 2), doc("rounds of averaging in one epoch: clients train and are averaged so often")
    ] = 1
    clip: Annotated[Bound, doc("bound of the change of one parameter in a step")] = 1.0
    statistic_clip: Annotated[Bound, doc("the same of a running statistic of batch norm")] = 64.0
    server_lr: Annotated[float, Gt(0), Le(100), doc("what the mean change is multiplied by")] = 1.0
    variate_clip: Annotated[
        Bound, doc("SCAFFOLD: bound of the change of one number of a client's control variate in a round")
    ] = 4.0


class AveragingSettings(Averaging):
    """The same, of a federation: what is averaged, and for how long."""

    layout: Annotated[Layout, doc("the model's parameters and floating-point buffers, in its `state_dict`'s order")]
    rounds: Annotated[int, Ge(1), doc("epochs of secure aggregation")]
    bound: Annotated[Bound, doc("bound of a parameter")] = 100.0
    statistic_bound: Annotated[Bound, doc("bound of a running statistic; a variance is 0 or more")] = MOST
    variate_bound: Annotated[Bound, doc("SCAFFOLD: bound of one number of the mean control variate")] = 100.0

    def _check(self) -> None:
        check_layout(self.layout)


class FedAvg(Rounds):
    """FedAvg as a course; see the module.

    State and publication: `weights` float32 (length,). Task `parameters` shows them; `metrics` shows nothing. The last
    epoch, of metrics alone, publishes the weights as they are.

    Args:
        settings: see `AveragingSettings`.
    """

    def __init__(self, settings: AveragingSettings) -> None:
        super().__init__(settings.rounds, (PARAMETERS,) * settings.steps)
        self.settings = settings
        layout, statistic = settings.layout, is_statistic
        high = for_each(layout, lambda name: settings.statistic_bound if statistic(name) else settings.bound)
        low = np.where(for_each(layout, lambda name: name.endswith("running_var")) > 0, 0.0, -high)
        self._bounds = {WEIGHTS: (low, high)}
        self._clips = {
            WEIGHTS: for_each(layout, lambda name: settings.statistic_clip if statistic(name) else settings.clip)
        }

    def start(self, seed: bytes, certified: int, last: Publication | None) -> State:
        """See `Course`: `initial_weights` of the seed, or what was learnt last.

        Raises:
            LocalProtocolError: a seed of another size than 32 bytes.
        """
        if last is not None:
            return {name: last[name] for name in self._clips}
        low, high = self._bounds[WEIGHTS]
        return {WEIGHTS: bounded(initial_weights(self.settings.layout, seed), high, low)}

    def publication(self, state: State) -> Publication:
        """See `Course`."""
        return {name: state[name] for name in self._clips}

    def share(self, changes: Mapping[str, Array], weight: float) -> dict[str, Array]:
        """A client's blocks: for whoever computes a client's vector.

        Args:
            changes: the change of each vector of the state, by its name, as it is; any shape of the right size.
            weight: the client's, in (0, 1].
        """
        values = {"weight": np.array([weight])}
        beyond = total = 0
        for name, clips in self._clips.items():
            scaled = changes[name].astype(np.float64).reshape(-1) / clips
            values[name] = np.clip(scaled, -1.0, 1.0) * weight
            beyond += int(np.count_nonzero(np.abs(scaled) > 1.0))
            total += len(scaled)
        values["clipped"] = np.array([weight * beyond / total])
        return values

    def _spec(self, name: str, honest: int) -> VectorSpec:
        vectors = tuple(Block(vector, len(clips), 1.0) for vector, clips in self._clips.items())
        return VectorSpec(PARAMETERS, (*vectors, Block("weight", 1, 1.0), Block("clipped", 1, 1.0)))

    def _shown(self, state: State) -> Arrays:
        return state

    def _absorbed(self, name: str, state: State, step: int, sums: Sums, count: int) -> State:
        following = {}
        for vector, clips in self._clips.items():
            move = weighted_mean(sums[vector], sums["weight"], 1.0) * clips * self._rate(vector)
            low, high = self._bounds[vector]
            following[vector] = bounded(state[vector].astype(np.float64) + move, high, low)
        return following

    def _rate(self, vector: str) -> float:
        return self.settings.server_lr if vector == WEIGHTS else 1.0

    def _figures(self, task: str, sums: Sums) -> Figures:
        """The share of the coordinates that was clipped."""
        clipped = float(sums["clipped"][0]) / max(float(sums["weight"][0]), LEAST_WEIGHT)
        return {"clipped": min(max(clipped, 0.0), 1.0)}


class FedProx(FedAvg):
    """FedAvg; a spring between each client's model and the global one is in the clients' loss."""


class Moon(FedAvg):
    """FedAvg; a contrast with the client's own last model is in the clients' loss."""


class Scaffold(FedAvg):
    """SCAFFOLD as a course; see the module.

    As `FedAvg`, and `variate` float32, one number for each parameter, running statistics left out: the mean control
    variate, 0 at first. A client's own one never leaves it but by its change.

    Args:
        settings: see `AveragingSettings`.
    """

    def __init__(self, settings: AveragingSettings) -> None:
        super().__init__(settings)
        if not trained(settings.layout):
            raise SettingsError("layout has running statistics alone; a parameter is needed")
        count = length_of(trained(settings.layout))
        high = np.full(count, float(settings.variate_bound))
        self._bounds[VARIATE] = (-high, high)
        self._clips[VARIATE] = np.full(count, float(settings.variate_clip))

    def start(self, seed: bytes, certified: int, last: Publication | None) -> State:
        """See `FedAvg`."""
        state = super().start(seed, certified, last)
        return {VARIATE: np.zeros(len(self._clips[VARIATE]), dtype=np.float32), **state}
