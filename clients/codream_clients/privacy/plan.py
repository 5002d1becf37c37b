"""What a client's whole run may cost in privacy, settled before it touches a record.

The unit is one record of one client; neighbours differ in one record, added or removed. Four mechanisms see records,
each a Gaussian one, all under one budget (epsilon, delta): a histogram of the labels, DP-SGD, and, if wanted, feature
statistics and counts of held-back images that are right, by which rounds are judged. Whatever follows from what they
release - dreams, soft labels, distillation - is post-processing.

The histogram and the statistics get their shares of epsilon, as if each were alone; what DP-SGD then may use is solved
for all of them together, warm-up and every planned round included, and is more than the rest of epsilon, since
Gaussian mechanisms compose by the squares of their costs.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from codream_clients.privacy.accounting import AccountingError, SampledGaussian, solve_noise_multiplier
from codream_clients.privacy.histogram import MOST_NOISE
from codream_clients.privacy.ledger import Budget, BudgetExceeded
from codream_clients.privacy.settings import GradSampleMode as GradSampleMode
from codream_clients.privacy.settings import PrivacySettings as PrivacySettings
from codream_protocols.settings import SettingsError

DELTA_TIMES_RECORDS = 0.1
HISTOGRAM, STATISTICS, WARM_UP, ROUND = "label histogram", "feature statistics", "warm-up", "round"
JUDGEMENT = "judgement"


class WeakDelta(UserWarning):
    """A delta of 1/n or more: a mechanism that publishes one whole record at random would pass it."""


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """Everything that a run will cost, and the noise that keeps it within the budget; see `plan_privacy`.

    Attributes:
        epsilon: the budget's.
        delta: the budget's.
        sample_rate: with which probability a record takes part in a step.
        histogram: the one charge of the label histogram.
        statistics: the one charge of the feature statistics, or None without them.
        noise_multiplier: of DP-SGD: the noise's deviation over `max_grad_norm`.
        rounds: for how many rounds of training the budget was planned; 0 if rounds do not train.
        judgements: of how many models held-back images are counted: after the warm-up and each round, or of none.
    """

    settings: PrivacySettings
    epsilon: float
    delta: float
    sample_rate: float
    histogram: SampledGaussian
    statistics: SampledGaussian | None
    noise_multiplier: float
    rounds: int
    judgements: int = 0

    def judgement(self, round: int) -> SampledGaussian:
        """The charge of counting how many held-back images are right after a round; 0 is the warm-up."""
        return SampledGaussian(self.settings.judge_noise, 1.0, 1, f"{JUDGEMENT} {min(round, self.judgements - 1)}")

    def training(self, epochs: int, purpose: str) -> SampledGaussian | None:
        """The charge of so many epochs of DP-SGD; None if that is no step."""
        steps = _steps(epochs, self.sample_rate)
        return SampledGaussian(self.noise_multiplier, self.sample_rate, steps, purpose) if steps else None

    @property
    def budget(self) -> Budget:
        """What all of it was solved for."""
        return Budget(self.epsilon, self.delta, self.settings.accountant)

    @property
    def charges(self) -> tuple[SampledGaussian, ...]:
        """All that is planned, in order."""
        rounds = (self.training(self.settings.round_epochs, round_purpose(n + 1)) for n in range(self.rounds))
        judged = (self.judgement(n) for n in range(self.judgements))
        warm_up = self.training(self.settings.warm_up_epochs, WARM_UP)
        planned = (self.histogram, warm_up, self.statistics, *rounds, *judged)
        return tuple(charge for charge in planned if charge is not None)

    @property
    def spare(self) -> int:
        """See `Planned`: a training that fails is none of those that others wait for."""
        return 0

    @property
    def charter(self) -> bytes:
        """See `Planned`."""
        return b""


class Planned(Protocol):
    """All that a run will charge, and the budget that it was solved for."""

    @property
    def charges(self) -> Sequence[SampledGaussian]:
        """In order."""

    @property
    def budget(self) -> Budget:
        """Of the federation."""

    @property
    def spare(self) -> int:
        """How many of the last ones are for rounds that fail and are made again."""

    @property
    def judgements(self) -> int:
        """How many counts of held-back images are charged."""

    @property
    def charter(self) -> bytes:
        """Digest of the charter whose charges these are alone; empty where what was released is kept for all."""


class PlannedCharges:
    """A ledger in memory, for a run that ends with its process: `reserve` takes each planned charge once."""

    def __init__(self, plan: Planned) -> None:
        self._left = list(plan.charges)

    def reserve(self, charge: SampledGaussian) -> None:
        """Raises `BudgetExceeded` for a charge that is not planned, or is spent."""
        if charge not in self._left:
            raise BudgetExceeded(f"{charge} is not planned, or is spent; left are {self._left}")
        self._left.remove(charge)


def round_purpose(number: int) -> str:
    """What a round's training is called in a ledger; rounds count from 1."""
    return f"{ROUND} {number}"


def rounds_trained(charges: Sequence[SampledGaussian]) -> int:
    """How many rounds' trainings are among a ledger's charges."""
    return sum(charge.purpose.startswith(f"{ROUND} ") for charge in charges)


def plan_privacy(settings: PrivacySettings, *, records: int, rounds: int, held_back: bool = False) -> PrivacyPlan:
    """Solve the budget of a client that trains on `records` images, for a run of `rounds` rounds.

    `held_back`: whether the federation's settings hold images back, so that they judge; not whether there are any.

    Warns `WeakDelta`. Raises `AccountingError` for a budget that no amount of noise keeps, and
    `SettingsError` for fewer than one record or round.
    """
    count = settings.records if settings.records is not None else records
    if count < 1 or rounds < 0:
        raise SettingsError(f"{count} records, {rounds} rounds; at least 1 and at least 0 are needed")
    if settings.delta is not None:
        warn_of_weak_delta(settings.delta, count)
    judgements = rounds + 1 if held_back and settings.judge_noise else 0
    if settings.training_rounds is not None:
        rounds = min(rounds, settings.training_rounds)
    return _plan(settings, count, rounds if settings.round_epochs else 0, judgements)


def warn_of_weak_delta(delta: float, records: int) -> None:
    """Warn `WeakDelta` if delta is 1/n or more, with n records."""
    if delta >= 1 / records:
        warnings.warn(
            f"delta is {delta:g}, and 1/n is {1 / records:.3g}; choose it well below", WeakDelta, stacklevel=3
        )


@lru_cache
def _plan(settings: PrivacySettings, records: int, rounds: int, judgements: int) -> PrivacyPlan:
    delta = settings.delta if settings.delta is not None else DELTA_TIMES_RECORDS / records
    rate = min(1.0, settings.batch_size / records)

    def alone(share: float, purpose: str) -> SampledGaussian:
        noise = solve_noise_multiplier(
            target_epsilon=share * settings.epsilon,
            delta=delta,
            sample_rate=1.0,
            steps=1,
            accountant=settings.accountant,
        )
        return SampledGaussian(noise, 1.0, 1, purpose)

    histogram = alone(settings.histogram_share, HISTOGRAM)
    if histogram.noise_multiplier > MOST_NOISE:
        raise AccountingError(
            f"the histogram's share of epsilon {settings.epsilon:g} asks for noise of {histogram.noise_multiplier:g}; "
            f"up to {MOST_NOISE:g} is drawn, so a larger epsilon or histogram_share is needed"
        )
    statistics = alone(settings.statistics_share, STATISTICS) if settings.statistics_share else None
    judged = [SampledGaussian(settings.judge_noise, 1.0, judgements, JUDGEMENT)] if judgements else []
    noise = solve_noise_multiplier(
        target_epsilon=settings.epsilon,
        delta=delta,
        sample_rate=rate,
        steps=_steps(settings.warm_up_epochs, rate) + rounds * _steps(settings.round_epochs, rate),
        others=[*judged, *(charge for charge in (histogram, statistics) if charge is not None)],
        accountant=settings.accountant,
    )
    return PrivacyPlan(
        settings=settings,
        epsilon=settings.epsilon,
        delta=delta,
        sample_rate=rate,
        histogram=histogram,
        statistics=statistics,
        noise_multiplier=noise,
        rounds=rounds,
        judgements=judgements,
    )


def _steps(epochs: int, rate: float) -> int:
    return max(1, round(epochs / rate)) if epochs > 0 else 0
