"""What is asked next, and what a sum means: the server's course through the rounds, without any socket.

One round is one epoch of secure aggregation: `steps` dream updates, one step of soft labels, one step in which the
finished dreams go out and the clients' metrics come back. Round r starts from fresh N(0, 1) noise; an epoch that fails
is given up with its dreams, and the round starts again from other noise.

Half-way (as CoDream's authors do): one more step of soft labels in the middle of the updates. What the dreams are then
and what they are in the end make one batch of 2B images, half-way ones first, which is published once, in the end.

Views: clients label V variations of each dream beside it, which they make themselves, all alike. The soft labels are
then ((1 + V) * B, K), those of the dreams first; images are sent of the dreams alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from codream_protocols.identity import Roster
from codream_protocols.keyschedule import PROTOCOL
from codream_protocols.plan import Plan, VectorSpec, default_threshold
from codream_protocols.server import Reveal
from codream_protocols.tasks import (
    LEARN,
    LOGITS,
    METRIC_NAMES,
    METRICS,
    UPDATE,
    bare_update_spec,
    learn_spec,
    logits_spec,
    metrics_spec,
    update_spec,
)
from codream_protocols.vectors import decode_vector
from codream_server.feddream import Batch, FedDreamDataset
from codream_server.optimisers import Dreams, make_optimiser
from codream_server.privacy_statement import ClientPrivacyStatement, client_privacy_statement, noise_multiplier_of
from codream_server.settings import AggregationSettings, ClientPrivacySettings, DreamSettings


class AdaptiveStudent(Protocol):
    """A student on the server that learns from the FedDream dataset alone and pulls dreams to what it does not know."""

    def learn(self, dataset: FedDreamDataset) -> None:
        """Train on the window."""

    def push(self, dreams: Dreams, weight: float) -> Dreams:
        """Return the dreams moved so that this student's entropy on them rises; same shape."""


@dataclass(frozen=True)
class StepResult:
    """What a revealed step says to people: securely aggregated means, None where the task has none."""

    task: str
    entropy: float | None = None
    clipped: float | None = None
    metrics: dict[str, float | None] | None = None


class Coordinator:
    """The rounds of one federation.

    Args:
        dreams: the dreams' settings.
        aggregation: secure aggregation's settings.
        roster: the verified roster.
        recipe: digest of the learning settings all parties share, 32 bytes.
        session: 16 random bytes.
        seed: seed of the noise that dreams start from.
        dataset: where finished dreams go.
        student: the adaptive student; None leaves the adaptive term out.
        privacy: client-level noise; None asks for none.
    """

    def __init__(
        self,
        *,
        dreams: DreamSettings,
        aggregation: AggregationSettings,
        roster: Roster,
        recipe: bytes,
        session: bytes,
        seed: int,
        dataset: FedDreamDataset,
        student: AdaptiveStudent | None = None,
        privacy: ClientPrivacySettings | None = None,
    ) -> None:
        self.round, self.epoch, self.dataset = 0, -1, dataset
        self._spent_rho = 0.0
        self._settings, self._aggregation, self._roster = dreams, aggregation, roster
        self._recipe, self._session, self._seed, self._student = recipe, session, seed, student
        self._privacy = privacy
        self._plan: Plan | None = None
        self._labelled: list[Batch] = []

    @property
    def done(self) -> bool:
        """Whether all rounds are over."""
        return self.round >= self._settings.rounds

    @property
    def rounds(self) -> int:
        """How many rounds there are in all."""
        return self._settings.rounds

    @property
    def steps_per_round(self) -> int:
        """Secure steps of a round: the updates, the soft labels (twice with half-way dreams), the metrics."""
        return self._settings.revealing_steps + 1

    @property
    def client_privacy(self) -> ClientPrivacyStatement | None:
        """What may be said about client-level privacy so far; None without noise."""
        if self._privacy is None:
            return None
        return client_privacy_statement(
            self._privacy,
            self._settings,
            self._aggregation,
            members=len(self._roster.members),
            spent_rho=self._spent_rho,
        )

    def least_cohort(self) -> int:
        """Fewer clients than this cannot make an epoch."""
        return max(self._aggregation.least_survivors, self._aggregation.threshold or 0, 2)

    def next_plan(self, cohort: Sequence[int]) -> Plan:
        """Plan the next epoch with these members; the dreams start from fresh noise."""
        settings, aggregation = self._settings, self._aggregation
        self.epoch += 1
        noise = np.random.default_rng([self._seed, self.epoch])
        self._dreams = noise.standard_normal((settings.batch, *settings.shape), dtype=np.float32)
        self._labelled = []
        self._optimiser = make_optimiser(settings)
        self._clip = settings.update_clip
        specs = self._specs()
        half = settings.steps // 2
        schedule = (0,) * half + (1,) + (0,) * (settings.steps - half) if settings.half_way else (0,) * settings.steps
        self._plan = Plan(
            protocol=PROTOCOL,
            session=self._session,
            epoch=self.epoch,
            roster=self._roster.hash,
            recipe=self._recipe,
            cohort=tuple(sorted(cohort)),
            specs=specs,
            schedule=(*schedule, 1, 2),
            value_bits=aggregation.value_bits,
            modulus_bits=max(
                spec.least_modulus_bits(aggregation.value_bits, len(cohort), self.steps_per_round) for spec in specs
            ),
            suite=aggregation.suite,
            threshold=aggregation.threshold or default_threshold(len(cohort), aggregation.colluders),
            least_survivors=aggregation.least_survivors,
            colluders=aggregation.colluders,
        )
        return self._plan

    def _specs(self) -> tuple[VectorSpec, ...]:
        settings, privacy = self._settings, self._privacy
        labels = logits_spec(settings.labels, settings.classes, settings.logit_clip)
        if privacy is None:
            updates = update_spec(settings.coordinates, settings.classes, settings.update_clip)
            return updates, labels, metrics_spec()
        honest = self._aggregation.least_survivors - self._aggregation.colluders
        multiplier = noise_multiplier_of(privacy, settings)
        return (
            bare_update_spec(settings.coordinates, settings.update_clip).with_noise(
                privacy.update_norm, multiplier, honest
            ),
            labels.with_noise(privacy.logit_norm, multiplier, honest),
            learn_spec(),
        )

    def task(self, step: int) -> str:
        """The task of a step of the current plan."""
        assert self._plan is not None  # noqa: S101 - next_plan was called
        return self._plan.spec(step).task

    def broadcast(self, step: int) -> tuple[tuple[float, ...], list[np.ndarray[Any, Any]]]:
        """Clips and public arrays of a step."""
        assert self._plan is not None  # noqa: S101 - next_plan was called
        spec = self._plan.spec(step)
        self._spent_rho += self._plan.rho(spec)
        clips = [block.clip for block in spec.blocks]
        if spec.task == UPDATE:
            clips[0] = self._clip
        return tuple(clips), list(self._published()) if spec.task in (METRICS, LEARN) else [self._dreams]

    def absorb(self, reveal: Reveal) -> StepResult:
        """Take a revealed sum: step the dreams, finish the soft labels, or end the round."""
        assert self._plan is not None  # noqa: S101 - next_plan was called
        task = self.task(reveal.step)
        sums = decode_vector(self._plan, reveal.step, reveal.clips, reveal.total, len(reveal.survivors))
        if task == UPDATE and self._privacy is not None:
            return self._absorb_noised_update(sums["dreams"] / len(reveal.survivors))
        if task == UPDATE:
            return self._absorb_update(sums)
        if task == LOGITS:
            return self._absorb_logits(sums)
        if task == LEARN:
            self.round += 1
            return StepResult(LEARN)
        values = sums["metrics"]
        count = len(reveal.survivors)
        means = {name: float(value) / count for name, value in zip(METRIC_NAMES, values, strict=True)}
        tested = means.pop("tested")
        # Of clients without test images nothing is known; the mean is over those that have some.
        accuracy = means["accuracy"] / tested if tested > 0.5 / count else None
        self.round += 1
        return StepResult(METRICS, metrics={**means, "accuracy": accuracy})

    def give_up(self) -> None:
        """The epoch failed. Finished dreams stay; only if their labels are missing does the round start anew."""
        if self._finished:
            self.round += 1

    def _absorb_update(self, sums: dict[str, np.ndarray[Any, np.dtype[np.float64]]]) -> StepResult:
        settings = self._settings
        weight = max(float(sums["weight"][0]), 1e-6)
        mean = (sums["dreams"] / weight).astype(np.float32).reshape(self._dreams.shape)
        clipped = float(np.clip(sums["clipped"][0] / weight, 0, 1))
        self._move_dreams(mean)
        if settings.adapt_clip:
            # Geometric pursuit of a small clipped fraction; every number in it is public already.
            factor = 1.5 if clipped > 0.01 else 0.8 if clipped < 0.001 else 1.0
            self._clip = float(np.clip(self._clip * factor, settings.update_clip / 1024, settings.update_clip))
        return StepResult(UPDATE, entropy=float(sums["entropy"][0] / weight), clipped=clipped)

    def _absorb_noised_update(self, mean: np.ndarray[Any, np.dtype[np.float64]]) -> StepResult:
        """No client's update leaves its clip, so neither does their mean: what does is noise, and is cut off."""
        clip = self._settings.update_clip
        self._move_dreams(np.clip(mean, -clip, clip).astype(np.float32).reshape(self._dreams.shape))
        return StepResult(UPDATE)

    def _move_dreams(self, mean: Dreams) -> None:
        settings = self._settings
        self._dreams = self._optimiser.step(self._dreams, mean)
        if self._student is not None and settings.adaptive_weight > 0 and self.round >= settings.adaptive_from:
            self._dreams = self._student.push(self._dreams, settings.adaptive_weight)

    def _absorb_logits(self, sums: dict[str, np.ndarray[Any, np.dtype[np.float64]]]) -> StepResult:
        numerators = sums["numerators"].reshape(self._settings.labels, self._settings.classes)
        soft_labels = (numerators / np.maximum(sums["denominators"], 1e-6)).astype(np.float32)
        if self._privacy is not None:  # likewise: a weighted mean of clipped logits
            soft_labels = np.clip(soft_labels, -self._settings.logit_clip, self._settings.logit_clip)
        self._labelled.append((self._dreams, soft_labels))
        if self._finished:
            self.dataset.add(self.round, *self._published())
            if self._student is not None:
                self._student.learn(self.dataset)
        return StepResult(LOGITS)

    @property
    def _finished(self) -> bool:
        """Whether the dreams have all the soft labels that the round is to give them."""
        return len(self._labelled) == (2 if self._settings.half_way else 1)

    def _published(self) -> Batch:
        """The round's dreams, half-way ones first, with their soft labels."""
        dreams, soft_labels = zip(*self._labelled, strict=True)
        return np.concatenate(dreams), np.concatenate(soft_labels)
