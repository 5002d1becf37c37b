"""A judge that knows of its images one noised number: how many of them a model gets right.

What answers others may then depend on what it says, so a round that fails is rolled back for good. One record moves the
count by 1 at most, and each count is a charge of the run's plan. An image is held back by a digest of itself alone, so
it is either trained on or counted; its ledger is charged for both all the same.

One image more changes nothing else: not whether there is a judge, which the settings say (its images may be none), nor
what a model says of the others (`models.passes`).

A model is worse where its count lies `FALL` deviations of the noise or more below the most of all rounds that were not
worse. The difference of two counts has the deviation sqrt(2), and the most of several lies above the truth, so with
less many rounds would be turned back for the noise alone. With 1,000 images and a deviation of 20 that is a fall by 8
points: small ones are not seen, and whoever has a few hundred images sees none at all.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from codream_clients.learning.judge import Judge, Score, Verdict
from codream_clients.learning.training import predict_logits
from codream_clients.models.passes import filled, in_parts
from codream_clients.privacy.histogram import noised
from codream_clients.privacy.noise import NoiseSource
from codream_clients.privacy.plan import PrivacyPlan
from codream_clients.privacy.releases import Iterates, Release, Releases

FALL = 4.0
TOGETHER = 64
"""Images that go through a model at a time, in every pass."""
JUDGEMENT_NOISE = 1000003  # apart from the other mechanisms'


class NoisedJudge(Judge):
    """Judges as `plan` pays for.

    Args:
        judge: whose images, held back, and device are taken.
        plan: with judgements.
        releases: where they are charged, and kept: a client that starts again hears the same count of the same round.
        noise: where the noise comes from.
    """

    def __init__(
        self, judge: Judge, plan: PrivacyPlan, releases: Releases, noise: NoiseSource, device: torch.device
    ) -> None:
        super().__init__(judge.data, device, held_back=True)
        self._plan, self._releases, self._noise = plan, releases, noise
        self._counts: dict[int, float] = {}
        self._most: float | None = None

    def judge(self, model: nn.Module, round: int) -> Verdict:
        """Judge a model as it stands after a round, by a count that is made once a round.

        Raises whatever `Releases` raises where the budget does not allow it.
        """
        if round not in self._counts:
            self._counts[round] = self._count(round, lambda: self._correct(model))
        count = self._counts[round]
        worse = self._most is not None and count <= self._most - FALL * self._plan.settings.judge_noise
        if self._most is None or count > self._most:
            self._most = count
            self._keep(model, round)
        return Verdict(self._score_of(count), self._score_of(self._most), self._round, worse, self.held_back)

    def _count(self, round: int, correct: Callable[[], int]) -> float:
        def release(iterates: Iterates) -> Release:
            stream = self._noise.stream(JUDGEMENT_NOISE + round)
            found = noised(np.array([correct()]), self._plan.settings.judge_noise, stream)
            return {"count": torch.from_numpy(found)}

        return float(self._releases.once(self._plan.judgement(round), release)["count"][0])

    def _correct(self, model: nn.Module) -> int:
        """How many are right; one that the model fails at is not."""
        images, labels = torch.from_numpy(self.data.images), self.data.labels

        def right(part: slice) -> int:
            said = predict_logits(model, filled(images[part], TOGETHER).numpy(), self._device, TOGETHER)
            return int((said[: part.stop - part.start].argmax(axis=1) == labels[part]).sum())

        return sum(found or 0 for _, found in in_parts(right, len(images), TOGETHER))

    def _score_of(self, count: float) -> Score:
        return Score(min(max(int(np.rint(count)), 0), self.images), self.images, None)
