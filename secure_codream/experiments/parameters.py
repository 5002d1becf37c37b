"""Averaging of parameters through secure aggregation: what FedAvg and its relatives need instead of dreams.

A client's model is one vector: its parameters and its floating-point buffers (running statistics of batch norm), in
the order of its `state_dict`. Integer buffers (`num_batches_tracked`) count what one copy has seen and enter no
output; they stay where they are. In a round each client sends the weighted *change* w_i (y_i - x) of what it has
received, and its weight w_i = n_i / (images of the largest shard) as a coordinate of its own; the server divides sum
by sum (FedAvg's mean with weights n_i) and learns no client's change and no client's n_i.

Range. Fixed-point numbers need a bound before the sum is known. Each tensor has a public scale s, and (y_i - x) / s
is encoded within [-1, 1]; so a bias and a running variance, which differ a thousandfold, are both sent with almost
all of their bits. The first round's scales are generous constants. With its change each client sends its largest
|w_i (y_i - x)| / s of every tensor; the sum of these peaks bounds each of them, and twice the sum is the next round's
scale. So nothing is clipped from the second round on unless changes grow, and a change that was clipped widens its
scale at once. Beyond the mean, the server learns the sum of the weights and the sum of the peaks of each tensor.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_clients.tasks import Arrays, Values
from codream_protocols.errors import VectorRefused
from codream_protocols.identity import Roster
from codream_protocols.keyschedule import PROTOCOL, digest
from codream_protocols.plan import Block, Plan, Policy, VectorSpec, default_threshold
from codream_protocols.ring import modulus_bits_for
from codream_protocols.vectors import decode_vector
from secure_codream.experiments.problem import Problem
from secure_codream.local import Bytes, LocalParties

FloatArray = NDArray[np.float32]
Change = Mapping[str, FloatArray]
"""Group's name -> vector: how far a client's work has moved what it received."""
Work = Callable[[Sequence[FloatArray]], Change]
"""A client's work of one round: public arrays -> its change."""

PARAMETERS = "parameters"
PARAMETER_RANGE, STATISTIC_RANGE = 4.0, 64.0  # first scales: weights move by less than one, a variance by tens
LEAST_SCALE = 2.0**-10  # of the first one, so that a tensor that rests for a round is not lost
HEADROOM = 2.0


class MixedArchitectures(ValueError):
    """Parameters of different architectures cannot be averaged."""

    def __init__(self, algorithm: str, models: Sequence[str]) -> None:
        self.algorithm, self.models = algorithm, tuple(models)
        super().__init__(
            f"{algorithm}: found models {', '.join(models)}; allowed: one architecture for all clients, since "
            "parameters are averaged; choose codream, avgkd or isolated for a mix"
        )


class LayoutError(ValueError):
    """A vector is not of this layout."""


def require_one_architecture(algorithm: str, problem: Problem) -> None:
    """Raise `MixedArchitectures` unless all clients have one architecture."""
    if not problem.homogeneous:
        raise MixedArchitectures(algorithm, problem.models)


@dataclass(frozen=True)
class Layout:
    """Named tensors as one vector.

    Attributes:
        names: the tensors, in order.
        shapes: their shapes.
        ranges: for each, a bound that its first change should stay within.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    ranges: tuple[float, ...]

    @classmethod
    def of_state(cls, model: nn.Module) -> Layout:
        """Parameters and floating-point buffers."""
        trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        ranges = tuple(PARAMETER_RANGE if name in trained else STATISTIC_RANGE for name in state)
        return cls(tuple(state), tuple(tuple(tensor.shape) for tensor in state.values()), ranges)

    @classmethod
    def of_parameters(cls, model: nn.Module) -> Layout:
        """Parameters alone, in the order of `parameters()`."""
        named = dict(model.named_parameters())
        shapes = tuple(tuple(tensor.shape) for tensor in named.values())
        return cls(tuple(named), shapes, (PARAMETER_RANGE,) * len(named))

    @classmethod
    def of_vector(cls, name: str, length: int, bound: float) -> Layout:
        """One vector within [-bound, bound]."""
        return cls((name,), ((length,),), (bound,))

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Values of each tensor."""
        return np.array([int(np.prod(shape)) for shape in self.shapes], dtype=np.int64)

    @property
    def length(self) -> int:
        """Values in all."""
        return int(self.sizes.sum())

    def join(self, tensors: Sequence[torch.Tensor]) -> FloatArray:
        """Tensors of these shapes, in this order, as one vector (length,)."""
        if [tuple(tensor.shape) for tensor in tensors] != list(self.shapes):
            raise LayoutError(f"{len(tensors)} tensors; allowed: {len(self.shapes)} of this layout's shapes")
        flat = [tensor.detach().to("cpu", torch.float32).reshape(-1).numpy() for tensor in tensors]
        return np.concatenate(flat)

    def split(self, vector: NDArray[Any], device: torch.device | None = None) -> list[torch.Tensor]:
        """The inverse of `join`: float32 copies on `device`."""
        if vector.shape != (self.length,):
            raise LayoutError(f"a vector of shape {vector.shape}; allowed: ({self.length},)")
        parts = np.split(vector.astype(np.float32), np.cumsum(self.sizes)[:-1])
        return [
            torch.tensor(part, device=device).reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)
        ]

    def read(self, model: nn.Module) -> FloatArray:
        """A model's state as a vector (length,)."""
        state = model.state_dict()
        return self.join([state[name] for name in self.names])

    def write(self, model: nn.Module, vector: NDArray[Any]) -> None:
        """Load a vector (length,) into a model; a running variance that rounding pushed below 0 becomes 0."""
        state = model.state_dict()
        for name, tensor in zip(self.names, self.split(vector), strict=True):
            state[name].copy_(tensor.clamp(min=0) if name.endswith("running_var") else tensor)


def peaks(layout: Layout, change: NDArray[Any]) -> NDArray[np.float64]:
    """The largest absolute value of each tensor."""
    parts = np.split(np.abs(change), np.cumsum(layout.sizes)[:-1])
    return np.array([float(part.max(initial=0.0)) for part in parts])


class ParameterLearner:
    """A client's work as the blocks of a secure sum; the last public array holds the scales of all tensors.

    Args:
        groups: what is sent: name -> layout.
        work: turns the other public arrays into the client's change.
        weight: its secret weight, in (0, 1].
    """

    def __init__(self, groups: Mapping[str, Layout], work: Work, weight: float) -> None:
        self._groups, self._work, self._weight = groups, work, weight

    def compute(self, task: str, arrays: Arrays, clips: Sequence[float]) -> Values:
        """See `Learner`.

        Raises:
            VectorRefused: an unknown task, or scales that are not one positive number for each tensor.
        """
        tensors = sum(len(layout.names) for layout in self._groups.values())
        if task != PARAMETERS or not arrays or arrays[-1].shape != (tensors,) or not (arrays[-1] > 0).all():
            raise VectorRefused(
                f"arrays of shapes {[array.shape for array in arrays]} for task {task!r}",
                f"task {PARAMETERS!r}, the last array {tensors} positive scales",
            )
        change = self._work([np.array(array) for array in arrays[:-1]])
        values: dict[str, np.ndarray[Any, Any]] = {"weight": np.array([self._weight])}
        found, start = [], 0
        for name, layout in self._groups.items():
            scales = arrays[-1][start : start + len(layout.names)].astype(np.float64)
            scaled = self._weight * change[name].astype(np.float64) / np.repeat(scales, layout.sizes)
            values[name] = np.clip(scaled, -1.0, 1.0)
            found.append(peaks(layout, values[name]))
            start += len(layout.names)
        values["peaks"] = np.concatenate(found)
        return values


class SecureMean:
    """The weighted mean of the clients' changes; each call is one epoch of secure aggregation with one step.

    Args:
        problem: the settings of secure aggregation, the shards' sizes (the weights) and the seed of the rounding.
        groups: what is sent: name -> layout.
        works: each client's work.
        even: whether all clients weigh the same, whatever their shards' sizes.
    """

    def __init__(
        self, problem: Problem, groups: Mapping[str, Layout], works: Sequence[Work], *, even: bool = False
    ) -> None:
        largest = max(len(shard) for shard in problem.shards)
        learners = [
            ParameterLearner(groups, work, 1.0 if even else len(shard) / largest)
            for work, shard in zip(works, problem.shards, strict=True)
        ]
        self._aggregation, self._groups, self.secure_steps = problem.aggregation, dict(groups), 0
        self._first = np.concatenate([np.array(layout.ranges) for layout in groups.values()])
        self._scales = self._first.copy()
        blocks = [Block(name, layout.length, 1.0) for name, layout in groups.items()]
        blocks += [Block("peaks", len(self._first), 1.0), Block("weight", 1, 1.0)]
        self._spec = VectorSpec(PARAMETERS, tuple(blocks))
        self._recipe = digest("recipe", json.dumps(asdict(problem.learning), sort_keys=True).encode())
        self._session = secrets.token_bytes(16)
        policy = Policy(
            least_cohort=max(2, self._aggregation.least_survivors),
            least_survivors=self._aggregation.least_survivors,
            colluders=self._aggregation.colluders,
            most_steps=1,
            most_coordinates=self._spec.length,
            most_value_bits=self._aggregation.value_bits,
            tasks={PARAMETERS: 1.0},
            suites=(self._aggregation.suite,),
            recipe=self._recipe,
        )
        self._parties = LocalParties(learners, policy, seed=problem.seed)

    @property
    def traffic(self) -> Bytes:
        """Application bytes of all clients together so far."""
        return self._parties.traffic

    @property
    def scales(self) -> NDArray[np.float64]:
        """The scales that the next exchange will use, one for each tensor of all groups in order."""
        return self._scales.copy()

    def exchange(self, public: Sequence[FloatArray]) -> dict[str, NDArray[np.float64]]:
        """Broadcast `public`, let every client work, and return the weighted mean change of each group.

        Raises:
            AggregationFailed: too few survivors.
            UnsafePlan: fewer clients than the settings of secure aggregation can protect.
        """
        sums: dict[str, NDArray[np.float64]] = {}
        plan = self._plan(self._parties.roster)
        scales = self._scales.astype(np.float32)
        clips = (1.0,) * len(self._spec.blocks)
        self._parties.run_epoch(
            plan,
            lambda step: (clips, [*public, scales]),
            lambda reveal: sums.update(
                decode_vector(plan, reveal.step, reveal.clips, reveal.total, len(reveal.survivors))
            ),
        )
        self.secure_steps += 1
        means, start = {}, 0
        for name, layout in self._groups.items():
            part = scales[start : start + len(layout.names)].astype(np.float64)
            means[name] = sums[name] * np.repeat(part, layout.sizes) / sums["weight"][0]
            start += len(layout.names)
        self._scales = np.maximum(self._scales * HEADROOM * sums["peaks"], self._first * LEAST_SCALE)
        return means

    def _plan(self, roster: Roster) -> Plan:
        aggregation, cohort = self._aggregation, len(roster.members)
        safe = default_threshold(cohort, aggregation.colluders)
        return Plan(
            protocol=PROTOCOL,
            session=self._session,
            epoch=self.secure_steps,
            roster=roster.hash,
            recipe=self._recipe,
            cohort=tuple(range(cohort)),
            specs=(self._spec,),
            schedule=(0,),
            value_bits=aggregation.value_bits,
            modulus_bits=modulus_bits_for(aggregation.value_bits, cohort),
            suite=aggregation.suite,
            threshold=aggregation.threshold or safe,
            least_survivors=aggregation.least_survivors,
            colluders=aggregation.colluders,
        )
