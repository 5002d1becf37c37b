"""Every course, small, and a walk through one on sums that are drawn: what the tests of courses share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from codream_protocols.course import Course, State, fingerprint
from codream_protocols.courses.codream import ClientPrivacy, CoDream, DreamSettings
from codream_protocols.courses.dp_sgd import DPSGD, DPSGDSettings
from codream_protocols.courses.generator import CoDreamFast, GeneratorSettings
from codream_protocols.courses.parameters import AveragingSettings, FedAvg, FedProx, Moon, Scaffold
from codream_protocols.courses.sums import Sums, SumsPrivacy
from codream_protocols.specs import Block, VectorSpec

MEMBERS, HONEST = 4, 3
LAYOUT = (
    ("conv.weight", (3, 2, 2, 2)),
    ("conv.bias", (3,)),
    ("norm.weight", (3,)),
    ("norm.bias", (3,)),
    ("norm.running_mean", (3,)),
    ("norm.running_var", (3,)),
    ("head.weight", (4, 3)),
)
Draw = Callable[[int], np.ndarray[Any, Any]]
"""Numbers in [-1, 1], as many as asked for."""


def fake_start(seed: bytes, count: int, shape: tuple[int, int, int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Images of the seed's bytes, repeated, within about [-12, 12]: some beyond the bound."""
    stream = np.frombuffer(hashlib.sha256(seed).digest(), dtype=np.uint8).astype(np.float32)
    return np.resize(stream / 10 - 12, (count, *shape)).astype(np.float32)


def dream_settings(**changed: Any) -> DreamSettings:
    return DreamSettings(**{"rounds": 2, "steps": 3, "batch": 2, "shape": (1, 3, 2), "classes": 3, **changed})


def codream(privacy: ClientPrivacy | None = None, **changed: Any) -> CoDream:
    return CoDream(dream_settings(**changed), fake_start, privacy)


PRIVACY = ClientPrivacy(epsilon=8.0, delta=1e-5, update_norm=1.0, logit_norm=2.0, spare_rounds=1)
AVERAGING = AveragingSettings(layout=LAYOUT, rounds=2, steps=2, server_lr=0.5)
COURSES: dict[str, Course] = {
    "codream": codream(),
    "codream, fedadam, views": codream(optimiser="fedadam", views=2, server_lr=0.1),
    "codream, gradient, half-way": codream(way="gradient", optimiser="adam", half_way=True),
    "codream, labels only": codream(steps=0),
    "codream, matched": codream(matched=True, views=1, views_by="cutmix"),
    "codream, noised": codream(PRIVACY, half_way=True),
    "codream, noised, fedadam": codream(PRIVACY, optimiser="fedadam"),
    "codream-fast": CoDreamFast(
        GeneratorSettings(layout=LAYOUT[:2], rounds=2, batch=2, classes=3, batches=2, global_steps=2, noise=5)
    ),
    "dp-sgd": DPSGD(
        DPSGDSettings(
            layout=LAYOUT[:2],
            rounds=2,
            epsilon=4.0,
            delta=1e-5,
            sample_rate=0.1,
            batch_size=10.0,
            steps=3,
            averaging=0.9,
        )
    ),
    "fedavg": FedAvg(AVERAGING),
    "fedprox": FedProx(AVERAGING),
    "moon": Moon(AveragingSettings(layout=LAYOUT, rounds=1)),
    "scaffold": Scaffold(AveragingSettings(layout=LAYOUT, rounds=2)),
    "sums": Sums(
        {"visits": (Block("number", 3, 1000, "count"), Block("ages", 1, 1e5)), "weights": (Block("kg", 2, 9.0),)}
    ),
    "sums, noised": Sums({"weights": (Block("kg", 2, 9.0),)}, SumsPrivacy(epsilon=8.0, delta=1e-5, norm=1.0)),
}


def legal_sums(spec: VectorSpec, draw: Draw) -> dict[str, np.ndarray[Any, Any]]:
    """Sums over `MEMBERS` within the encoding's bounds, extremes at -1 and 1; with noise, far beyond the clips."""
    sums: dict[str, np.ndarray[Any, Any]] = {}
    for block in spec.blocks:
        unit = draw(block.length)
        if block.kind == "count":
            sums[block.name] = np.rint(np.abs(unit) * (MEMBERS * block.clip)).astype(np.int64)
        else:
            sums[block.name] = unit * (MEMBERS * block.clip * (1.0 if spec.noise is None else 1e6))
    return sums


def uniform(number: int) -> Draw:
    source = np.random.default_rng(number)
    return lambda length: source.uniform(-1, 1, length)


def constant(value: float) -> Draw:
    return lambda length: np.full(length, value)


def walk(course: Course, draw: Draw) -> Iterator[tuple[str, State, State]]:
    """All epochs: (task, state before, state after) of each step, and ("published", last state, publication)."""
    last, specs = None, course.specs(HONEST)
    for certified in range(course.epochs):
        seed = hashlib.sha256(bytes([certified])).digest()
        state = course.start(seed, certified, last)
        for step, kind in enumerate(course.schedule(certified)):
            task = course.task(state, step)
            assert task.name == specs[kind].task
            fingerprint(task.arrays)
            following = course.absorb(state, step, legal_sums(specs[kind], draw), MEMBERS)
            yield task.name, state, following
            state = following
        last = course.publication(state)
        yield "published", state, last


def trail(name: str, number: int) -> str:
    """Hexadecimal fingerprints of all states and publications of a course on sums drawn from `number`."""
    return "\n".join(fingerprint(after).hex() for _, _, after in walk(COURSES[name], uniform(number)))
