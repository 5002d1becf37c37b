"""How a client trains under record-level differential privacy: the settings, without any tensor library."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

AccountantName = Literal["prv", "rdp"]
GradSampleMode = Literal["hooks", "ghost", "auto"]


class PrivacySettingsError(ValueError):
    """A privacy setting is out of its range."""


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
