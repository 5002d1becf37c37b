"""DP-SGD through the ring, in two worlds: an epoch of its steps with one record more at one client, and without it.

The adversary is the server together with those members whom the promise allows to collude. It sees the opened sum of
every step and subtracts what its own members sent, noise and all, so that the others' shares alone hide the record.
What it attacks is what is deployed: learner, rounding, clamp, shares, encoding and the course's own steps. Masks are
left out, since they cancel in what is opened.

Each record takes part in every step (rate 1): then the claim has the trade-off of one Gaussian, of whose distance each
step adds a part by its square, and an audit can refute it (`bounds`). With samples the same code runs; that fewer steps
see a record is what the accountant says, and its tests hold. The model is linear, so the record's gradient follows from
each state, and is longer than the clip: this is the worst case that the accountant assumes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from codream_clients.data.datasets import LabelledImages
from codream_clients.dp_sgd_learner import DPSGDLearner
from codream_clients.models.layouts import trained_layout
from codream_clients.privacy.noise import NoiseSource
from codream_protocols.charter import Aggregation, Charter, Plan, even_blocks, first_plan
from codream_protocols.course import Array
from codream_protocols.courses.dp_sgd import DPSGD, GRADIENT, WEIGHTS, DPSGDSettings
from codream_protocols.encoding import decode, encode, integers
from codream_protocols.record_noise import RecordNoise, clamped
from codream_protocols.seeded import SeededBytes
from secure_codream.audit.bounds import Floats
from secure_codream.audit.two_worlds import CLASSES, CPU, SIDE, two_worlds
from secure_codream.reports.audit_results import AuditRow

RATE = 0.01
"""Of the steps: states move, and the record's gradient stays longer than the clip."""


def ring_course(epsilon: float, delta: float, steps: int) -> DPSGD:
    """The course under audit: one epoch of a linear model, in which every record takes part in each step."""
    return DPSGD(
        DPSGDSettings(
            layout=trained_layout(_linear()),
            rounds=1,
            epsilon=epsilon,
            delta=delta,
            sample_rate=1.0,
            batch_size=1.0,
            steps=steps,
            spare_rounds=0,
            max_grad_norm=1.0,
            lr=RATE,
        )
    )


def audit_ring(course: DPSGD, *, members: int, runs: int, confidence: float, seed: int, silent: int = 0) -> AuditRow:
    """Run the course's epoch `runs` times in each world, and bound the epsilon that it claims.

    Args:
        course: of `ring_course`.
        members: of the federation, in lockstep; one of them colludes.
        runs: in each world.
        confidence: of the lower bound.
        seed: of all that is drawn.
        silent: how many of the honest members leave their share of noise out: a broken mechanism.
    """
    settings, aggregation = course.settings, Aggregation()
    charter = Charter(
        roster=bytes(32),
        members=members,
        settings=bytes(32),
        aggregation=aggregation,
        blocks=even_blocks(members, aggregation.colluders),
    )
    plan, honest = first_plan(charter, course), charter.least_honest
    random = SeededBytes(seed, "audit of the ring")

    def vector(member: int, step: int, values: Array | None) -> Array:
        """What a member sends before its mask; none of those that collude is silent."""
        if honest - silent <= member < honest:
            return _without_noise(plan, step, values)
        return encode(plan, step, None if values is None else {GRADIENT: values}, random)[0]

    def score(learner: DPSGDLearner) -> float:
        state, found = course.start(bytes(32), 0, None), 0.0
        for step in range(settings.steps):
            ring = np.uint64((1 << plan.modulus_bits(step)) - 1)
            own = learner.compute(course.task(state, step), plan.spec(step))[GRADIENT]
            sent = [vector(member, step, None if member else own).astype(np.uint64) for member in range(members)]
            opened = np.asarray(np.sum(sent, axis=0, dtype=np.uint64) & ring)
            unknown = np.asarray((opened - np.sum(sent[honest:], axis=0, dtype=np.uint64)) & ring)
            found += float(integers(plan, step, unknown) @ _direction(state[WEIGHTS]))
            state = course.absorb(state, step, decode(plan, step, opened, members), members)
        return found

    def scores(images: Array) -> Floats:
        records = LabelledImages(images.astype(np.float32), np.zeros(len(images), dtype=np.int64), CLASSES)
        learner = DPSGDLearner(
            course, _linear(), records, charge=lambda charge: None, noise=NoiseSource(seed), device=CPU
        )
        return np.array([score(learner) for _ in range(runs)])

    # A blank image has no gradient here, so the record is all that the worlds differ in.
    blank, record = np.zeros((1, 1, SIDE, SIDE)), np.ones((1, 1, SIDE, SIDE))
    return two_worlds(
        "the ring's sums",
        scores(np.concatenate([blank, record])),
        scores(blank),
        claimed=settings.epsilon,
        delta=settings.delta,
        confidence=confidence,
    )


def _linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES, bias=False))


def _direction(weights: Array) -> Floats:
    """Of the record's gradient at these weights, (d,): of length 1."""
    logits = torch.from_numpy(weights).view(CLASSES, -1).double().sum(1)  # its pixels are all 1
    residual = logits.softmax(0).numpy()
    residual[0] -= 1
    gradient: Floats = np.repeat(residual, SIDE * SIDE)
    return gradient / float(np.linalg.norm(gradient))


def _without_noise(plan: Plan, step: int, values: Array | None) -> Array:
    spec = plan.spec(step)
    assert isinstance(spec.noise, RecordNoise)  # noqa: S101 - of this course
    total = np.zeros(spec.length, dtype=np.int64) if values is None else values
    return clamped(total, spec.noise) & ((1 << plan.modulus_bits(step)) - 1)
