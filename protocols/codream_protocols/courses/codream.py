"""CoDream (Singh et al., arXiv 2402.15968): clients move one batch of dreams together, label it, and learn from it.

A round is an epoch: `steps` sums of dream updates, then one of soft labels. The dreams start from a public rule and the
seed of the epoch, so that nobody chooses them.

- Update way: clients take L local steps and send the difference. Gradient way: they send dL/dx. What follows the mean
  of either is in `optimisers`.
- Half-way: one more step of soft labels in the middle of the updates. What the dreams are then and what they are in
  the end make one batch of 2B images, half-way ones first.
- Votes: clients name a class for each dream in place of logits, which bears noise far better (`labels`).
- Views: clients label V variations of each dream beside it, which they make themselves, all alike.
- Adaptive term: each client trains its own copy of the public student and has the term in its own dream loss. Nothing
  of it is here but its settings.
- Client-level noise: each number that is sent takes a part of the privacy budget. So weights are 1 for everybody, an
  update carries the change of the dreams and nothing else, and there are no metrics.

Pixels stay within a public bound, so that no model overflows at any state that lying members can bring about.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal, get_args

import numpy as np
from annotated_types import Ge, Gt, Le, doc

from codream_protocols.charter import MAX_STEPS
from codream_protocols.course import Array, Arrays, Publication, State, Sums
from codream_protocols.courses.contrast import CONTRAST, contrast_spec, matched
from codream_protocols.courses.labels import (
    LOGITS,
    VOTES,
    LabelBy,
    check_learnt_from,
    logits_spec,
    soft_labels,
    vote_shares,
    votes_norm,
    votes_spec,
)
from codream_protocols.courses.numbers import LEAST_WEIGHT, bounded, weighted_mean
from codream_protocols.courses.optimisers import OPTIMISERS, OptimiserName, Way, fitting
from codream_protocols.courses.rounds import Figures, Rounds
from codream_protocols.distributed_noise import multiplier_for
from codream_protocols.settings import MOST, Settings, SettingsError, out_of_range
from codream_protocols.specs import Block, VectorSpec
from codream_protocols.starts import PHOTOS, START_NAMES, StartRule, check_start

UPDATE = "update"
_LOG_2 = 0.6931471805599453


Clip = Annotated[float, Gt(0), Le(MOST)]
ViewsBy = Literal["affine", "cutmix"]


class Dreams(Settings):
    """`[dreams]`: the dreams and their optimisation."""

    start: Annotated[str, doc("rule that makes the start images, or module:function, WHICH RUNS THAT CODE")] = "noise"
    photographs: Annotated[
        str | None,
        doc("of start `photos` alone: the digest of the photographs' pixels; `provision` works it out"),
    ] = None
    steps: Annotated[
        int,
        Ge(0),
        Le(MAX_STEPS - 3),
        doc("secure steps of dream updates a batch; 0 labels the start images as they are"),
    ] = 10
    half_way: Annotated[bool, doc("whether the dreams are labelled after half of the updates too")] = False
    batch: Annotated[int, Ge(2), Le(65_536), doc("B, images of a batch")] = 128
    views: Annotated[int, Ge(0), Le(64), doc("V, variations of each dream that clients label beside it")] = 0
    views_by: Annotated[
        ViewsBy,
        doc(
            "how views vary: an affine map, for what is written; or mirrored, moved and with a box cut out of another "
            "dream (CutMix), for natural images"
        ),
    ] = "affine"
    matched: Annotated[
        bool,
        doc(
            "whether the start images get the brightness and contrast of the clients' images, by one more secure sum "
            "of five numbers a round; not where records or clients are private"
        ),
    ] = False
    label_by: Annotated[
        LabelBy, doc("how clients label dreams: by logits, or by one vote each, which bears client-level noise better")
    ] = "logits"
    way: Annotated[Way, doc("what clients send: a difference, or dL/dx")] = "update"
    optimiser: Annotated[
        OptimiserName,
        doc(f"of updates {' or '.join(fitting('update'))}, of gradients {' or '.join(fitting('gradient'))}"),
    ] = "average"
    server_lr: Annotated[float, Gt(0), Le(100), doc("step size of the optimiser")] = 1.0
    update_clip: Annotated[Clip, doc("bound of one coordinate of an update or gradient")] = 1.0
    update_bits: Annotated[
        int,
        Ge(8),
        Le(24),
        doc(
            "bits of one coordinate of an update, at least; they are as many as rings of 16 bits have room for, or of "
            "the fewest above: 14 of four clients, 10 of 64, which `most_value_bits` of a policy must permit"
        ),
    ] = 10
    logit_clip: Annotated[Clip, doc("bound of one logit")] = 30.0
    pixel_bound: Annotated[Clip, doc("bound of a pixel, in units of the standardised data")] = 10.0
    window: Annotated[int, Ge(1), Le(1000), doc("how many rounds' batches clients learn from")] = 10
    adaptive_weight: Annotated[
        float, Ge(0), Le(100), doc("weight of the adaptive term in each client's loss; 0 leaves it out")
    ] = 0.0
    adaptive_from: Annotated[int, Ge(0), doc("round, from 0, from which on the adaptive term counts")] = 0

    def _check(self) -> None:
        if ":" not in self.start and self.start not in START_NAMES:
            raise out_of_range("start", self.start, f"{', '.join(START_NAMES)} or module:function")
        if self.photographs is not None:
            if self.start != PHOTOS:
                raise SettingsError(f"photographs is given with start {self.start!r}; {PHOTOS!r} alone has them")
            if not re.fullmatch("[0-9a-f]{64}", self.photographs):
                raise out_of_range("photographs", self.photographs, "a digest of 64 hexadecimal digits")
        if self.half_way and self.steps < 2:
            raise SettingsError(f"steps is {self.steps} with half_way; 2 or more is allowed")
        if self.half_way and self.views:
            raise SettingsError(f"views is {self.views} with half_way; choose one of them")
        if self.label_by == VOTES and self.adaptive_weight > 0:
            raise SettingsError(
                f"adaptive_weight is {self.adaptive_weight} with label_by 'votes'; 0 is allowed, since the adaptive "
                "student learns from logits"
            )
        if self.adaptive_weight > 0 and self.steps == 0:
            raise SettingsError(
                f"adaptive_weight is {self.adaptive_weight} with steps = 0; 0 is allowed, since nobody moves the dreams"
            )
        if self.optimiser not in fitting(self.way):
            allowed = "; ".join(f"{way} with {' or '.join(fitting(way))}" for way in get_args(Way))
            raise SettingsError(f"way {self.way!r} with optimiser {self.optimiser!r}; allowed: {allowed}")


class DreamSettings(Dreams):
    """The same, of a federation: its rounds, and the form of its images."""

    rounds: Annotated[int, Ge(1), doc("dream batches to make, one epoch of secure aggregation each")]
    shape: Annotated[tuple[int, int, int], doc("(C, H, W) of an image")]
    classes: Annotated[int, Ge(2), doc("K")]

    def _check(self) -> None:
        super()._check()
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise SettingsError(f"shape is {self.shape}; three numbers (C, H, W) of 1 or more are allowed")
        images = 2 * self.batch if self.half_way else self.labels
        check_learnt_from(min(self.window, self.rounds), images, self.shape)

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


class ClientPrivacy(Settings):
    """`[client_privacy]`: client-level differential privacy of the whole federation (docs/client-level-privacy.md)."""

    epsilon: Annotated[float, Gt(0), Le(1000), doc("what all noised sums together may cost a client, at `delta`")]
    delta: Annotated[float, Gt(0), Le(0.01), doc("chance that the bound fails")]
    update_norm: Annotated[
        Annotated[float, Ge(1e-6), Le(MOST)] | None,
        doc(
            "Euclidean bound of a client's update of the dreams, in units of `update_clip`; needed where there are "
            "updates, and there alone"
        ),
    ] = None
    logit_norm: Annotated[
        Annotated[float, Ge(1e-6), Le(MOST)] | None,
        doc(
            "the same of its soft labels, in units of `logit_clip` (and of 1 for the classes' weights); needed unless "
            'label_by = "votes", whose norm is their number\'s root'
        ),
    ] = None
    spare_rounds: Annotated[
        int, Ge(0), Le(100_000), doc("rounds that may fail and be made again within the budget")
    ] = 0


def _check_norms(privacy: ClientPrivacy, settings: DreamSettings) -> None:
    """A bound for each kind of noised vector, and none that would be of no effect."""
    if (privacy.update_norm is None) != (settings.steps == 0):
        found = "not given" if privacy.update_norm is None else f"{privacy.update_norm}"
        needed = "a number above 0 is needed" if settings.steps else "none is allowed, since there are no updates"
        raise SettingsError(f"update_norm is {found} with steps = {settings.steps}; {needed}")
    if (privacy.logit_norm is None) != (settings.label_by == VOTES):
        found = "not given" if privacy.logit_norm is None else f"{privacy.logit_norm}"
        needed = "none is allowed, since votes have one norm" if settings.label_by == VOTES else "a number is needed"
        raise SettingsError(f"logit_norm is {found} with label_by {settings.label_by!r}; {needed}")


class CoDream(Rounds):
    """CoDream as a course; see the module.

    State: `dreams` float32 (B, C, H, W), what the optimiser keeps, and the soft labels and half-way dreams that
    there are already. Tasks `update`, `logits`, `votes` show `dreams`; `metrics` shows nothing. Publication: `dreams`
    float32 (B or 2B, C, H, W) and `soft_labels` float32 ((1 + V) x B or 2B, K), those of the dreams before those of the
    views: mean logits, or shares of the votes; nothing after an epoch of metrics alone.

    Args:
        settings: of the dreams.
        start_rule: makes the start images: (seed, B, (C, H, W)) -> float32 (B, C, H, W).
        privacy: client-level noise; None for none.
        stop_after: the run ends once the sum of the held-back images that clients get right has not risen for so many
            rounds, after the epoch whose metrics say so; 0 never. State and publication then have `held` int64 (2,):
            the most so far, and for how many epochs it has not been exceeded.
    """

    def __init__(
        self,
        settings: DreamSettings,
        start_rule: StartRule,
        privacy: ClientPrivacy | None = None,
        *,
        stop_after: int = 0,
    ) -> None:
        if stop_after and privacy is not None:
            raise SettingsError(
                f"stop_after is {stop_after} with client-level privacy; 0 is allowed: it has no metrics"
            )
        if privacy is not None:
            _check_norms(privacy, settings)
        half = settings.steps // 2
        labels = settings.label_by
        middle = (labels,) if settings.half_way else ()
        if settings.matched and privacy is not None:
            raise SettingsError("matched with client-level privacy; false is allowed: those sums have no noise")
        updates = (UPDATE,) * half + middle + (UPDATE,) * (settings.steps - half)
        if settings.matched:
            updates = (CONTRAST, *updates)
        super().__init__(settings.rounds, (*updates, labels), metrics=privacy is None, held=stop_after > 0)
        self.settings, self.privacy, self._start_rule, self._stop_after = settings, privacy, start_rule, stop_after

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
        held = self._held_so_far(last)
        if self._closes(certified):
            return held
        settings = self.settings
        images = self._start_rule(seed, settings.batch, settings.shape)
        images = check_start(images, settings.batch, settings.shape)
        kept = OPTIMISERS[settings.optimiser].fresh(images.shape)
        return {"dreams": bounded(images, settings.pixel_bound), **kept, **held}

    def publication(self, state: State) -> Publication:
        """See `Course`."""
        held = {name: state[name] for name in ("held",) if name in state}
        if "soft_labels" not in state:
            return held
        parts = [("half_dreams", "half_soft_labels")] if self.settings.half_way else []
        parts.append(("dreams", "soft_labels"))
        return {
            "dreams": np.concatenate([state[dreams] for dreams, _ in parts]),
            "soft_labels": np.concatenate([state[labels] for _, labels in parts]),
            **held,
        }

    def over(self, publication: Publication) -> bool:
        """Whether the sum of held-back figures has not risen for `stop_after` rounds."""
        return self._stop_after > 0 and int(publication["held"][1]) >= self._stop_after

    def _held_so_far(self, last: Publication | None) -> State:
        if not self._stop_after:
            return {}
        return {"held": np.array([-1, 0]) if last is None else last["held"]}

    def _measured(self, state: State, sums: Sums) -> State:
        if not self._stop_after:
            return state
        found, (most, since) = int(sums["held_correct"][0]), state["held"].tolist()
        return {**state, "held": np.array([found, 0] if found > most else [most, since + 1])}

    def _spec(self, name: str, honest: int) -> VectorSpec:
        settings, privacy = self.settings, self.privacy
        if name == VOTES:
            votes = votes_spec(settings.labels, settings.classes)
            norm = votes_norm(settings.labels)
            return votes if privacy is None else votes.with_noise(norm, self.noise_multiplier, honest)
        if name == LOGITS:
            labels = logits_spec(settings.labels, settings.classes, settings.logit_clip)
            if privacy is None:
                return labels
            assert privacy.logit_norm is not None  # noqa: S101 - `_check_norms`
            return labels.with_noise(privacy.logit_norm, self.noise_multiplier, honest)
        if name == CONTRAST:
            return contrast_spec()
        dreams = Block("dreams", settings.coordinates, float(settings.update_clip))
        if privacy is not None:
            assert privacy.update_norm is not None  # noqa: S101 - `_check_norms`
            return VectorSpec(UPDATE, (dreams,)).with_noise(privacy.update_norm, self.noise_multiplier, honest)
        entropy = Block("entropy", 1, settings.entropy_bound)
        blocks = (dreams, Block("weight", 1, 1.0), entropy, Block("clipped", 1, 1.0))
        return VectorSpec(UPDATE, blocks, value_bits=settings.update_bits)

    def _shown(self, state: State) -> Arrays:
        return {"dreams": state["dreams"]}

    def _absorbed(self, name: str, state: State, step: int, sums: Sums, count: int) -> State:
        settings = self.settings
        if name == CONTRAST:
            return {**state, "dreams": matched(state["dreams"], sums, settings.pixel_bound)}
        if name == UPDATE:
            weight = sums["weight"] if self.privacy is None else np.array([count], dtype=np.float64)
            mean = weighted_mean(sums["dreams"], weight, settings.update_clip)
            return self._moved(state, mean.reshape(state["dreams"].shape))
        labels = (
            vote_shares(sums, settings.labels, settings.classes, count)
            if name == VOTES
            else soft_labels(sums, settings.labels, settings.classes, settings.logit_clip)
        )
        if step < len(self._steps) - 1:
            return {**state, "half_dreams": state["dreams"], "half_soft_labels": labels}
        return {**state, "soft_labels": labels}

    def _moved(self, state: State, mean: Array) -> State:
        settings = self.settings
        move, kept = OPTIMISERS[settings.optimiser].step(state, mean, settings.server_lr)
        dreams = bounded(state["dreams"].astype(np.float64) + move, settings.pixel_bound)
        return {**state, **kept, "dreams": dreams}

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
