"""A course: one public computation, run by the server and by every client alike.

What is asked next, and what a sum means, is a deterministic function of (charter, history, start, published sums). So
nobody needs to be told: each client computes the state itself, and a server that tells a wrong sum is found out. A
course is pure (numpy, no clock, file or socket), and it computes with integers or with single correctly rounded
operations (+, -, *, /, sqrt on arrays; no exp, no power, no matrix product, no sum over floats, whose order may
differ), so that all machines agree to the last bit.

    state = course.start(seed, certified, last)            # seed: nobody's choice
    for step, kind in enumerate(course.schedule(certified)):
        task = course.task(state, step)                    # what a client computes from: public arrays
        state = course.absorb(state, step, sums, count)    # total: any sums within their bounds give a state
    what is learnt = course.publication(state)             # once the epoch is certified

A state and a publication are named arrays; integers are arrays too, so that a digest covers everything.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from codream_protocols.keyschedule import digest
from codream_protocols.specs import VectorSpec

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
State = Arrays
Publication = Arrays
Sums = Mapping[str, Array]
"""Each block's sum: float64 for reals, int64 for counts, shape (length,)."""

_TYPES = ("<f4", "<f8", "<i8", "<i4", "|u1", "<u4")


@dataclass(frozen=True)
class Task:
    """What a client is asked in a step: the task's name, which is its vector's, and the public arrays it goes by."""

    name: str
    arrays: Arrays


class Course(Protocol):
    """See the module. Own courses need these methods and nothing else.

    A course may also have `over(publication) -> bool`: whether it ends early, after an epoch that published this.
    """

    @property
    def epochs(self) -> int:
        """How many epochs there are to certify, at most."""

    def specs(self, honest: int) -> tuple[VectorSpec, ...]:
        """The kinds of vector; where there is noise, `honest` shares of it are the whole."""

    def schedule(self, certified: int) -> tuple[int, ...]:
        """For each step of the epoch after `certified` ones, the index of its kind of vector."""

    def start(self, seed: bytes, certified: int, last: Publication | None) -> State:
        """The state before the first step.

        Args:
            seed: 32 bytes that nobody chose.
            certified: epochs certified before.
            last: the publication of the newest one; None before the first.
        """

    def task(self, state: State, step: int) -> Task:
        """What clients compute in a step."""

    def absorb(self, state: State, step: int, sums: Sums, count: int) -> State:
        """The state after a step.

        Args:
            state: before it.
            step: the step.
            sums: the sum of each block over the survivors; any values within the encoding's bounds.
            count: how many survivors there are.
        """

    def publication(self, state: State) -> Publication:
        """What is learnt from the epoch, after its last step."""


class Learner(Protocol):
    """Whoever computes one member's vectors, and learns from what is certified. The only part that sees data."""

    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
        """The numbers of a step's blocks, each of its block's length (any shape), from the public arrays.

        What it raises is for its own operator; zeros are sent in its place.
        """

    def learn(self, number: int, publication: Publication) -> None:
        """Learn from a certified epoch, the `number`-th; called once for each, in order, before the next step."""


def is_over(course: Course, certified: int, publication: Publication | None) -> bool:
    """Whether nothing follows after so many certified epochs, of which the newest has published this."""
    ends = getattr(course, "over", None)
    return certified >= course.epochs or (ends is not None and publication is not None and bool(ends(publication)))


def canonical(arrays: Arrays) -> dict[str, Array]:
    """Named arrays, contiguous, little-endian and read-only, in the order of their names."""
    plain = {}
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False) if array.dtype.itemsize > 1 else array
        if array.dtype.str not in _TYPES:
            raise TypeError(f"array {name!r} of {array.dtype}; {', '.join(_TYPES)} are what a state is made of")
        view = array.view()
        view.flags.writeable = False
        plain[name] = view
    return plain


def fingerprint(arrays: Arrays) -> bytes:
    """Digest of named arrays: names, types, shapes and bytes; 32 bytes."""
    parts: list[bytes] = []
    for name, array in canonical(arrays).items():
        shape = struct.pack(f">{array.ndim + 1}I", array.ndim, *array.shape)
        parts += [name.encode(), array.dtype.str.encode(), shape, array.tobytes()]
    return digest("arrays", *parts)
