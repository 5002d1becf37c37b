"""What a client's whole run may cost in privacy, settled before it touches a record.

The unit is one record of one client; neighbours differ in one record, added or removed. Three mechanisms see records,
each a Gaussian one, all under one budget (epsilon, delta): a histogram of the labels, DP-SGD, and, if wanted, feature
statistics. Whatever follows from what they release - dreams, soft labels, distillation - is post-processing.

The histogram and the statistics get their shares of epsilon, as if each were alone; what DP-SGD then may use is solved
for all of them together, warm-up and every planned round included, and is more than the rest of epsilon, since
Gaussian mechanisms compose by the squares of their costs.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal, get_args

from codream_clients.accounting import AccountantName, SampledGaussian, solve_noise_multiplier
from codream_clients.ledger import BudgetExceeded

GradSampleMode = Literal["hooks", "ghost", "auto"]
DELTA_TIMES_RECORDS = 0.1
HISTOGRAM, STATISTICS, WARM_UP, ROUND = "label histogram", "feature statistics", "warm-up", "round"


class PrivacySettingsError(ValueError):
    """A privacy setting is out of its range."""


class WeakDelta(UserWarning):
    """A delta of 1/n or more: a mechanism that publishes one whole record at random would pass it."""


@dataclass(frozen=True, kw_only=True)
class PrivacySettings:
    """How a client trains under record-level differential privacy.

    Attributes:
        epsilon: of everything together, above 0.
        delta: in (0, 1); a tenth of 1/n unless given. From 1/n on, `WeakDelta` warns.
        records: n as it may be known: with it the rate of Poisson sampling is fixed, so that neither rate nor steps
            follow from the records. The number of a client's images unless given, which then counts as public.
        batch_size: records expected in a step; the rate is batch_size / n.
        warm_up_epochs: n / batch_size steps each, before the first round.
        round_epochs: the same in every round that trains; 0 leaves the whole budget to the warm-up.
        training_rounds: the first so many rounds train, and share the budget with the warm-up; all unless given. Those
            after them dream and distil, which costs nothing more.
        max_grad_norm: the L2 norm to which each record's gradient is clipped.
        lr: of SGD, for the clipped gradients' sum over batch_size.
        momentum: Nesterov's, in [0, 1).
        histogram_share: of epsilon, for the histogram, in (0, 1).
        statistics_share: of epsilon, for the feature statistics; 0 leaves them out, and R_bn with them.
        accountant: "prv" or "rdp", see `accounting`.
        mode: "hooks" keeps every record's gradient; "ghost" computes their norms alone and goes backward twice (Li et
            al., ICLR 2022). Hooks are faster on most small networks, ghost clipping needs less memory. "auto" takes
            what is faster here; the two round differently, so that runs repeat to the last bit with a named one only.
        physical_batch: records that go through the model at a time; it changes memory and speed, not the result.
        secure_mode: noise from a cryptographic generator, hardened against floating-point attacks (Holohan and
            Braghin, 2021), by Opacus with torchcsprng.

    Raises:
        PrivacySettingsError: a value out of its range.
    """

    epsilon: float
    delta: float | None = None
    records: int | None = None
    batch_size: int = 512
    warm_up_epochs: int = 12
    round_epochs: int = 0
    training_rounds: int | None = None
    max_grad_norm: float = 0.3
    lr: float = 2.0
    momentum: float = 0.0
    histogram_share: float = 0.1
    statistics_share: float = 0.0
    accountant: AccountantName = "prv"
    mode: GradSampleMode = "hooks"
    physical_batch: int = 128
    secure_mode: bool = False

    def __post_init__(self) -> None:
        for name in ("epsilon", "max_grad_norm", "lr"):
            self._require(name, above=0)
        self._require("round_epochs", at_least=0)
        for name in ("warm_up_epochs", "batch_size", "physical_batch", "records", "training_rounds"):
            self._require(name, at_least=1)
        self._require("delta", above=0, below=1)
        self._require("histogram_share", above=0, below=1)
        for name in ("momentum", "statistics_share"):
            self._require(name, at_least=0, below=1)
        if self.histogram_share + self.statistics_share >= 1:
            raise PrivacySettingsError(
                f"histogram_share and statistics_share are {self.histogram_share + self.statistics_share:g} together; "
                "less than 1 is needed, the rest is for training"
            )
        for name, allowed in (("accountant", get_args(AccountantName)), ("mode", get_args(GradSampleMode))):
            if getattr(self, name) not in allowed:
                raise PrivacySettingsError(f"{name} is {getattr(self, name)!r}; {' or '.join(allowed)} is allowed")

    def _require(
        self, name: str, *, at_least: float = -math.inf, above: float = -math.inf, below: float = math.inf
    ) -> None:
        value = getattr(self, name)
        if value is None and name in ("delta", "records", "training_rounds"):
            return
        if not (math.isfinite(value) and value >= at_least and above < value < below):
            low = f"at least {at_least:g}" if math.isfinite(at_least) else f"above {above:g}"
            high = f" and below {below:g}" if math.isfinite(below) else ""
            raise PrivacySettingsError(f"{name} is {value}; a finite number {low}{high} is needed")


PRIVACY_KEYS = frozenset(field.name for field in fields(PrivacySettings))


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
    """

    settings: PrivacySettings
    epsilon: float
    delta: float
    sample_rate: float
    histogram: SampledGaussian
    statistics: SampledGaussian | None
    noise_multiplier: float
    rounds: int

    def training(self, epochs: int, purpose: str) -> SampledGaussian | None:
        """The charge of so many epochs of DP-SGD; None if that is no step."""
        steps = _steps(epochs, self.sample_rate)
        return SampledGaussian(self.noise_multiplier, self.sample_rate, steps, purpose) if steps else None

    @property
    def charges(self) -> tuple[SampledGaussian, ...]:
        """All that is planned, in order."""
        rounds = (self.training(self.settings.round_epochs, round_purpose(n + 1)) for n in range(self.rounds))
        planned = (self.histogram, self.training(self.settings.warm_up_epochs, WARM_UP), self.statistics, *rounds)
        return tuple(charge for charge in planned if charge is not None)


class PlannedCharges:
    """A ledger in memory, for a run that ends with its process: `reserve` takes each planned charge once."""

    def __init__(self, plan: PrivacyPlan) -> None:
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


def plan_privacy(settings: PrivacySettings, *, records: int, rounds: int) -> PrivacyPlan:
    """Solve the budget of a client of `records` images for a federation of `rounds` rounds.

    Warns `WeakDelta`. Raises `AccountingError` for a budget that no amount of noise keeps, and
    `PrivacySettingsError` for fewer than one record or round.
    """
    count = settings.records if settings.records is not None else records
    if count < 1 or rounds < 0:
        raise PrivacySettingsError(f"{count} records, {rounds} rounds; at least 1 and at least 0 are needed")
    if settings.delta is not None:
        warn_of_weak_delta(settings.delta, count)
    if settings.training_rounds is not None:
        rounds = min(rounds, settings.training_rounds)
    return _plan(settings, count, rounds if settings.round_epochs else 0)


def warn_of_weak_delta(delta: float, records: int) -> None:
    """Warn `WeakDelta` if delta is 1/n or more, with n records."""
    if delta >= 1 / records:
        warnings.warn(
            f"delta is {delta:g}, and 1/n is {1 / records:.3g}; choose it well below", WeakDelta, stacklevel=3
        )


@lru_cache
def _plan(settings: PrivacySettings, records: int, rounds: int) -> PrivacyPlan:
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
    statistics = alone(settings.statistics_share, STATISTICS) if settings.statistics_share else None
    noise = solve_noise_multiplier(
        target_epsilon=settings.epsilon,
        delta=delta,
        sample_rate=rate,
        steps=_steps(settings.warm_up_epochs, rate) + rounds * _steps(settings.round_epochs, rate),
        others=[charge for charge in (histogram, statistics) if charge is not None],
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
    )


def _steps(epochs: int, rate: float) -> int:
    return max(1, round(epochs / rate)) if epochs > 0 else 0
