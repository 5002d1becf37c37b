"""What the aggregator is told: frozen settings, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass


class SettingsError(ValueError):
    """A setting that is out of range: what was found, what is allowed."""


@dataclass(frozen=True, kw_only=True)
class DreamSettings:
    """The dreams and their optimisation.

    Attributes:
        rounds: dream batches to make, one epoch of secure aggregation each.
        steps: secure steps of dream updates a batch (the soft labels and metrics take two more); 0 labels plain noise.
        half_way: whether the dreams are labelled after half of the updates too, which takes one more step and gives
            batches of 2B images.
        batch: B, images of a batch.
        views: V, variations of each dream that the clients label beside it; they make them themselves.
        shape: (C, H, W) of an image.
        classes: K.
        way: "update" (clients send a difference) or "gradient" (clients send dL/dx).
        optimiser: "average" or "fedadam" for updates, "adam" (CoDream's authors: "distadam") for gradients.
        server_lr: step size of the optimiser.
        update_clip: bound of one coordinate of an update.
        logit_clip: bound of one logit.
        adapt_clip: let the bound follow the fraction of clipped coordinates, from sums already public.
        window: how many rounds' batches the FedDream dataset holds.
        adaptive_weight: lambda of the adaptive term (needs the student); 0 leaves it out.
        adaptive_from: the round, from 0, from which on it counts.
    """

    rounds: int
    steps: int
    batch: int
    shape: tuple[int, int, int]
    classes: int
    way: str = "update"
    optimiser: str = "average"
    server_lr: float = 1.0
    half_way: bool = False
    views: int = 0
    update_clip: float = 1.0
    logit_clip: float = 30.0
    adapt_clip: bool = False
    window: int = 10
    adaptive_weight: float = 0.0
    adaptive_from: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("steps", 0), ("batch", 1), ("views", 0), ("window", 1)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} is {getattr(self, name)}; {least} or more is allowed")
        if self.half_way and self.steps < 2:
            raise SettingsError(f"steps is {self.steps} with half_way; 2 or more is allowed")
        if self.half_way and self.views:
            raise SettingsError(f"views is {self.views} with half_way; choose one of them")
        allowed = {"update": ("average", "fedadam"), "gradient": ("adam", "distadam")}
        if self.optimiser not in allowed.get(self.way, ()):
            raise SettingsError(
                f"way {self.way!r} with optimiser {self.optimiser!r}; allowed: update with average or fedadam, "
                "gradient with adam or distadam"
            )

    @property
    def revealing_steps(self) -> int:
        """Secure steps of a round in which clients send something of their data, metrics apart."""
        return self.steps + (2 if self.half_way else 1)

    @property
    def labels(self) -> int:
        """Soft labels of a step: B, or with views (1 + V) x B."""
        return (1 + self.views) * self.batch

    @property
    def coordinates(self) -> int:
        """B x C x H x W."""
        channels, height, width = self.shape
        return self.batch * channels * height * width


@dataclass(frozen=True, kw_only=True)
class AggregationSettings:
    """Secure aggregation.

    Attributes:
        value_bits: v, bits of one value.
        suite: the mask generator.
        colluders: c, colluding clients that every plan must tolerate.
        least_survivors: fewest inputs in a sum.
        threshold: shares that rebuild a secret; None means floor(2n/3) + 1 of the members invited.
    """

    value_bits: int = 16
    suite: str = "aes-256-ctr"
    colluders: int = 1
    least_survivors: int = 3
    threshold: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClientPrivacySettings:
    """Client-level differential privacy of the whole federation (docs/client-level-privacy.md).

    Attributes:
        epsilon: what all noised sums together may cost a client, at `delta`.
        delta: in (0, 1).
        update_norm: Euclidean bound of a client's update of the dreams, in units of `update_clip`.
        logit_norm: the same of its soft labels, in units of `logit_clip` (and of 1 for the classes' weights).
        spare_rounds: rounds that may fail and be made again within the budget.
    """

    epsilon: float
    delta: float
    update_norm: float
    logit_norm: float
    spare_rounds: int = 0


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Patience, in seconds.

    Attributes:
        join: how long to wait for the whole roster before the first epoch.
        step: how long one phase of an epoch may take.
        beat: how often a client must be heard.
        lost_after: silence after which a client is not waited for any more.
        attempts: epochs in a row that may fail before the federation gives up.
    """

    join: float = 120.0
    step: float = 300.0
    beat: float = 1.0
    lost_after: float = 5.0
    attempts: int = 5
