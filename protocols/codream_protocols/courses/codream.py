"""CoDream (Singh et al., arXiv 2402.15968): clients move one batch of dreams together, label it, and learn from it.

A round is an epoch: `steps` sums of dream updates, then one of soft labels. The dreams start from a public rule and the
seed of the epoch, so that nobody chooses them.

- Update way: clients take L local steps and send the difference; the mean is added ("average") or followed by Adam as
  a pseudo-gradient ("fedadam"; Reddi et al., ICLR 2021). Gradient way: Adam on the mean gradient, as CoDream's authors
  have it, who call it DistAdam; "adam" and "distadam" are two names of one optimiser.
- Half-way: one more step of soft labels in the middle of the updates. What the dreams are then and what they are in
  the end make one batch of 2B images, half-way ones first.
- Views: clients label V variations of each dream beside it, which they make themselves, all alike.
- Adaptive term: each client trains its own copy of the public student and has the term in its own dream loss. Nothing
  of it is here but its settings.
- Client-level noise: each number that is sent takes a part of the privacy budget. So weights are 1 for everybody, an
  update carries the change of the dreams and nothing else, and there are no metrics.

Pixels stay within a public bound, so that no model overflows at any state that lying members can bring about.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from codream_protocols.course import Array, Arrays, Publication, State, Sums
from codream_protocols.courses.labels import LOGITS, logits_spec, soft_labels
from codream_protocols.courses.numbers import LEAST_WEIGHT, adam, bounded, fresh_moments, weighted_mean
from codream_protocols.courses.rounds import Figures, Rounds
from codream_protocols.courses.settings import SettingsError, require_least, require_positive
from codream_protocols.distributed_noise import multiplier_for
from codream_protocols.specs import Block, VectorSpec
from codream_protocols.starts import StartRule, check_start

UPDATE = "update"
BETAS = (0.9, 0.999)
OPTIMISERS = {"update": ("average", "fedadam"), "gradient": ("adam", "distadam")}
_LOG_2 = 0.6931471805599453


@dataclass(frozen=True, kw_only=True)
class DreamSettings:
    """The dreams and their optimisation.

    Attributes:
        rounds: dream batches to make, one epoch of secure aggregation each.
        steps: secure steps of dream updates a batch; 0 labels the start images as they are.
        batch: B, images of a batch.
        shape: (C, H, W) of an image.
        classes: K.
        start: name of the rule that makes the start images, or module:function; see `codream_protocols.starts`.
        way: "update" (clients send a difference) or "gradient" (clients send dL/dx).
        optimiser: "average" or "fedadam" for updates, "adam" or "distadam" for gradients.
        server_lr: step size of the optimiser.
        half_way: whether the dreams are labelled after half of the updates too.
        views: V, variations of each dream that the clients label beside it.
        update_clip: bound of one coordinate of an update or gradient.
        logit_clip: bound of one logit.
        pixel_bound: bound of a pixel, in units of the standardised data.
        window: how many rounds' batches clients learn from.
        adaptive_weight: lambda of the adaptive term; 0 leaves it out. Read by clients.
        adaptive_from: the round, from 0, from which on it counts. Read by clients.

    Raises:
        SettingsError: a setting out of its range.
    """

    rounds: int
    steps: int
    batch: int
    shape: tuple[int, int, int]
    classes: int
    start: str = "noise"
    way: str = "update"
    optimiser: str = "average"
    server_lr: float = 1.0
    half_way: bool = False
    views: int = 0
    update_clip: float = 1.0
    logit_clip: float = 30.0
    pixel_bound: float = 10.0
    window: int = 10
    adaptive_weight: float = 0.0
    adaptive_from: int = 0

    def __post_init__(self) -> None:
        require_least(
            rounds=(self.rounds, 1),
            steps=(self.steps, 0),
            batch=(self.batch, 1),
            classes=(self.classes, 2),
            views=(self.views, 0),
            window=(self.window, 1),
            adaptive_from=(self.adaptive_from, 0),
        )
        require_positive(
            server_lr=self.server_lr,
            update_clip=self.update_clip,
            logit_clip=self.logit_clip,
            pixel_bound=self.pixel_bound,
        )
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise SettingsError(f"shape is {self.shape}; three numbers (C, H, W) of 1 or more are allowed")
        if not (math.isfinite(self.adaptive_weight) and self.adaptive_weight >= 0):
            raise SettingsError(f"adaptive_weight is {self.adaptive_weight}; a finite number of at least 0 is allowed")
        if self.half_way and self.steps < 2:
            raise SettingsError(f"steps is {self.steps} with half_way; 2 or more is allowed")
        if self.half_way and self.views:
            raise SettingsError(f"views is {self.views} with half_way; choose one of them")
        if self.optimiser not in OPTIMISERS.get(self.way, ()):
            allowed = "; ".join(f"{way} with {' or '.join(names)}" for way, names in OPTIMISERS.items())
            raise SettingsError(f"way {self.way!r} with optimiser {self.optimiser!r}; allowed: {allowed}")

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
        return self.batch * math.prod(self.shape)

    @property
    def entropy_bound(self) -> float:
        """A bound of an entropy in nats: log 2 times the bits that a class takes, or 1.

        Not log K itself, whose last bit is the business of a machine's library: all must derive the same plan.
        """
        return max(1.0, _LOG_2 * (self.classes - 1).bit_length())


@dataclass(frozen=True, kw_only=True)
class ClientPrivacy:
    """Client-level differential privacy of the whole federation (docs/client-level-privacy.md).

    Attributes:
        epsilon: what all noised sums together may cost a client, at `delta`.
        delta: in (0, 1).
        update_norm: Euclidean bound of a client's update of the dreams, in units of `update_clip`.
        logit_norm: the same of its soft labels, in units of `logit_clip` (and of 1 for the classes' weights).
        spare_rounds: rounds that may fail and be made again within the budget.

    Raises:
        SettingsError: a setting out of its range.
    """

    epsilon: float
    delta: float
    update_norm: float
    logit_norm: float
    spare_rounds: int = 0

    def __post_init__(self) -> None:
        require_positive(epsilon=self.epsilon, update_norm=self.update_norm, logit_norm=self.logit_norm)
        require_least(spare_rounds=(self.spare_rounds, 0))
        if not 0 < self.delta < 1:
            raise SettingsError(f"delta is {self.delta}; a number between 0 and 1 is allowed")


class CoDream(Rounds):
    """CoDream as a course; see the module.

    State: `dreams` float32 (B, C, H, W), Adam's moments if it is used, and the soft labels and half-way dreams that
    there are already. Tasks `update` and `logits` show `dreams`; `metrics` shows nothing. Publication: `dreams` float32
    (B or 2B, C, H, W) and `soft_labels` float32 ((1 + V) x B or 2B, K), those of the dreams before those of the views;
    nothing after an epoch of metrics alone.

    Args:
        settings: of the dreams.
        start_rule: makes the start images: (seed, B, (C, H, W)) -> float32 (B, C, H, W).
        privacy: client-level noise; None for none.
    """

    def __init__(self, settings: DreamSettings, start_rule: StartRule, privacy: ClientPrivacy | None = None) -> None:
        half = settings.steps // 2
        middle = (LOGITS,) if settings.half_way else ()
        updates = (UPDATE,) * half + middle + (UPDATE,) * (settings.steps - half)
        super().__init__(settings.rounds, (*updates, LOGITS), metrics=privacy is None)
        self.settings, self.privacy, self._start_rule = settings, privacy, start_rule

    @property
    def noise_multiplier(self) -> float:
        """The noise of each noised sum, over its sensitivity, so that all together keep the budget; 0 without noise."""
        if self.privacy is None:
            return 0.0
        rounds = self.settings.rounds + self.privacy.spare_rounds
        return multiplier_for(self.privacy.epsilon, self.privacy.delta, rounds * self.settings.revealing_steps)

    def start(self, seed: bytes, certified: int, last: Publication | None) -> State:
        """See `Course`.

        Raises:
            LocalProtocolError: start images of another type or shape, or that are not finite.
        """
        if self._closes(certified):
            return {}
        settings = self.settings
        images = self._start_rule(seed, settings.batch, settings.shape)
        images = check_start(images, settings.batch, settings.shape)
        state: dict[str, Array] = {"dreams": bounded(images, settings.pixel_bound)}
        if settings.optimiser != "average":
            state |= fresh_moments(images.shape)
        return state

    def publication(self, state: State) -> Publication:
        """See `Course`."""
        if "soft_labels" not in state:
            return {}
        parts = [("half_dreams", "half_soft_labels")] if self.settings.half_way else []
        parts.append(("dreams", "soft_labels"))
        return {
            "dreams": np.concatenate([state[dreams] for dreams, _ in parts]),
            "soft_labels": np.concatenate([state[labels] for _, labels in parts]),
        }

    def _spec(self, name: str, honest: int) -> VectorSpec:
        settings, privacy = self.settings, self.privacy
        if name == LOGITS:
            labels = logits_spec(settings.labels, settings.classes, settings.logit_clip)
            return labels if privacy is None else labels.with_noise(privacy.logit_norm, self.noise_multiplier, honest)
        dreams = Block("dreams", settings.coordinates, float(settings.update_clip))
        if privacy is not None:
            return VectorSpec(UPDATE, (dreams,)).with_noise(privacy.update_norm, self.noise_multiplier, honest)
        entropy = Block("entropy", 1, settings.entropy_bound)
        return VectorSpec(UPDATE, (dreams, Block("weight", 1, 1.0), entropy, Block("clipped", 1, 1.0)))

    def _shown(self, state: State) -> Arrays:
        return {"dreams": state["dreams"]}

    def _absorbed(self, name: str, state: State, step: int, sums: Sums, count: int) -> State:
        settings = self.settings
        if name == UPDATE:
            weight = sums["weight"] if self.privacy is None else np.array([count], dtype=np.float64)
            mean = weighted_mean(sums["dreams"], weight, settings.update_clip)
            return self._moved(state, mean.reshape(state["dreams"].shape))
        labels = soft_labels(sums, settings.labels, settings.classes, settings.logit_clip)
        if step < len(self._steps) - 1:
            return {**state, "half_dreams": state["dreams"], "half_soft_labels": labels}
        return {**state, "soft_labels": labels}

    def _moved(self, state: State, mean: Array) -> State:
        settings = self.settings
        moments: dict[str, Array] = {}
        if settings.optimiser == "average":
            move = settings.server_lr * mean
        else:
            move, moments = adam(state, mean, settings.server_lr, BETAS)
            move = move if settings.way == "update" else -move
        dreams = bounded(state["dreams"].astype(np.float64) + move, settings.pixel_bound)
        return {**state, **moments, "dreams": dreams}

    def _figures(self, task: str, sums: Sums) -> Figures:
        """Of updates without noise: the mean entropy of the teachers, in nats, and the share that was clipped."""
        if task != UPDATE or self.privacy is not None:
            return {}
        weight = max(float(sums["weight"][0]), LEAST_WEIGHT)
        entropy, clipped = float(sums["entropy"][0]) / weight, float(sums["clipped"][0]) / weight
        return {
            "entropy": min(max(entropy, 0.0), self.settings.entropy_bound),
            "clipped": min(max(clipped, 0.0), 1.0),
        }
