"""Learners of the courses that average parameters: FedAvg, FedProx, MOON and SCAFFOLD.

    course = FedAvg(AveragingSettings(layout=layout_of(model), rounds=...))
    learner = AveragingLearner(course, model, data, settings, seed=..., device=..., weight=..., test=...)
    learner = ProximalLearner(..., mu=0.1)                          # course FedProx
    learner = ContrastiveLearner(..., mu=0.1, temperature=0.5)      # course Moon
    learner = ControlledLearner(..., course is Scaffold)

In each step a client loads the global model, trains it on its own images for a round's passes, and its change is
encoded by the course's `share`. The start is a choice of the epoch's seed, so nothing is trained before the first step:
the warm-up's passes belong to its work. How the client's own model fares half-way, `warm_up_metrics` says afterwards.

What a client keeps from round to round (SCAFFOLD's control variate, MOON's last model, the number of the round) is
staged: it counts once the epoch is certified, when `learn` is called, and is forgotten when the next epoch begins
without, which its first step, the metrics, tells.

FedProx (Li et al., MLSys 2020) minimises F_i(w) + (mu / 2) ||w - x||^2 with x the global model received; the norm is
over the parameters, statistics of batch norm feel no spring.

MOON (Li, He, Song, CVPR 2021): with z the representation of an image under the model in training, z_glob under the
global model received, z_prev under the client's own model at the end of its last round,
    loss = plain + mu * -log( e^{cos(z, z_glob) / tau} / (e^{cos(z, z_glob) / tau} + e^{cos(z, z_prev) / tau}) ).
In the first round z_prev is z_glob, and the term has no gradient. The paper adds a projection head to the model; here
the model stays as it is, and z is the input of its last linear layer.

SCAFFOLD (Karimireddy et al., ICML 2020): local steps follow g_i(y) - c_i + c. After K steps (option II)
    c_i <- c_i - c + (x - y_i) / (K lr).
All baselines share one optimiser, which has momentum; the place of K lr, how far plain SGD goes under a constant
gradient of one, is taken by how far SGD with Nesterov momentum goes (`local_work.displacement`). The change of c_i is
clipped as it is sent, so that c stays the mean of all c_i.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from codream_clients.data.datasets import LabelledImages
from codream_clients.dream_learner import OnMetrics, metrics_values
from codream_clients.learning.judge import Judge
from codream_clients.learning.local_work import (
    OWN_DATA,
    WARM_UP,
    Batch,
    Correction,
    Objective,
    displacement,
    stage_seed,
    train_epochs,
    watched,
)
from codream_clients.learning.participant import Metrics, measured
from codream_clients.learning.settings import LearningSettings
from codream_clients.models.layouts import FloatArray, check_model_layout, read_vector, split_vector, write_vector
from codream_clients.models.layouts import LayoutError as LayoutError
from codream_clients.models.layouts import layout_of as layout_of
from codream_protocols.course import Array, Arrays, Publication, Task
from codream_protocols.courses.layouts import trained
from codream_protocols.courses.metrics import METRICS
from codream_protocols.courses.parameters import (
    CONTRAST,
    CONTRAST_TEMPERATURE,
    PARAMETERS,
    PROXIMAL,
    VARIATE,
    WEIGHTS,
    FedAvg,
    Scaffold,
)
from codream_protocols.errors import VectorRefused
from codream_protocols.specs import VectorSpec


@dataclass(frozen=True, eq=False)
class Kept:
    """What a client keeps from one round to the next.

    Attributes:
        rounds: how many rounds of local work have been learnt.
        model: MOON: its own model at the end of the last one.
        variate: SCAFFOLD: c_i.
    """

    rounds: int = 0
    model: nn.Module | None = None
    variate: FloatArray | None = None


class AveragingLearner:
    """FedAvg's client; the others differ in `_work`.

    Args:
        course: the course; it encodes changes.
        model: of the course's layout; trained in place, and the global model after each `learn`.
        data: the client's own images.
        settings: rates, sizes of batches, passes and loss.
        seed: the client's.
        device: where to train.
        weight: its secret weight, in (0, 1]: its images over those of the largest client.
        test: images to measure the global model on; None where there are none.
        tells_accuracy: whether its counts are in the sum of metrics; if not, zeros are.
        on_metrics: called with the global model's metrics after each epoch learnt.
        judge: looks at the client's own model half-way, and at each global model; the global model is everybody's, so
            that one which is worse is said, and the best weights are only kept.

    Raises:
        LayoutError: a model of another layout than the course's.
    """

    def __init__(
        self,
        course: FedAvg,
        model: nn.Module,
        data: LabelledImages,
        settings: LearningSettings,
        *,
        seed: int,
        device: torch.device,
        weight: float = 1.0,
        test: LabelledImages | None = None,
        tells_accuracy: bool = True,
        on_metrics: OnMetrics = lambda metrics: None,
        judge: Judge | None = None,
    ) -> None:
        self._layout = course.settings.layout
        check_model_layout(model, self._layout)
        self.model = model.to(device).eval()
        self.metrics: Metrics | None = None
        self.warm_up_metrics: Metrics | None = None
        self._course, self._data, self._settings, self._seed, self._device = course, data, settings, seed, device
        self._weight, self._test, self._tells_accuracy, self._on_metrics = weight, test, tells_accuracy, on_metrics
        self._judge, self._kept, self._staged = judge, Kept(), Kept()

    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
        """See `Learner`.

        Raises:
            VectorRefused: an unknown task.
            TrainingError: the training diverged.
        """
        if task.name == METRICS:
            self._staged = self._kept  # an epoch begins; what one that was given up has left is forgotten
            return metrics_values(self._counts(), tells=self._tells_accuracy)
        if task.name != PARAMETERS:
            raise VectorRefused(f"task {task.name!r}", f"{METRICS} or {PARAMETERS}")
        changes, self._staged = self._work(task.arrays, self._staged)
        return self._course.share(changes, self._weight)

    def learn(self, number: int, publication: Publication) -> None:
        """See `Learner`: what was staged counts, and the global model is measured."""
        self._kept = self._staged
        self._take(number, publication)

    def recall(self, number: int, publication: Publication) -> None:
        """What an earlier process has learnt; what it kept beyond the global model is lost with it."""
        self._kept = self._staged = Kept(rounds=number * self._course.settings.steps)
        self._take(number, publication)

    def _take(self, number: int, publication: Publication) -> None:
        write_vector(self.model, self._layout, publication[WEIGHTS])
        self.metrics = self._measure(number)
        self._on_metrics(self.metrics)

    def _work(self, arrays: Arrays, kept: Kept) -> tuple[dict[str, Array], Kept]:
        """A round's work from the public arrays: the changes to send, and what to keep if they count."""
        received = arrays[WEIGHTS]
        self._train(received, kept)
        return {WEIGHTS: self._moved(received)}, Kept(kept.rounds + 1)

    def _train(
        self,
        received: Array,
        kept: Kept,
        objective: Objective | None = None,
        correction: Correction | None = None,
    ) -> float:
        """Train the global model for a round; returns how far a constant gradient of one would have moved it."""
        write_vector(self.model, self._layout, received)
        settings, number = self._settings, kept.rounds + 1
        options: dict[str, Any] = {"device": self._device, "objective": objective, "correction": correction}
        reach = 0.0
        if number == 1:
            seed = stage_seed(self._seed, 0, WARM_UP)
            reach += self._reach(
                train_epochs(
                    self.model,
                    self._data,
                    settings,
                    epochs=settings.warm_up_epochs,
                    seed=seed,
                    device=self._device,
                )
            )
            self.warm_up_metrics = self._measure(0)
        seed = stage_seed(self._seed, number, OWN_DATA)
        epochs = settings.epochs_in(number)
        return reach + self._reach(train_epochs(self.model, self._data, settings, epochs=epochs, seed=seed, **options))

    def _reach(self, steps: int) -> float:
        return displacement(steps, self._settings.momentum, self._settings.schedule)

    def _moved(self, received: Array) -> Array:
        return read_vector(self.model, self._layout) - received

    def _measure(self, number: int) -> Metrics:
        verdict = None if self._judge is None else self._judge.judge(self.model, number)
        return measured(self.model, self._data, self._test, self._device, rounds=number, verdict=verdict)

    def _counts(self) -> tuple[int, int, int, int]:
        found = self.metrics
        if found is None:
            return 0, 0, 0, 0
        trained, tested = len(self._data), 0 if self._test is None else len(self._test)
        return (
            round((found.accuracy or 0.0) * tested),
            tested,
            round((found.train_accuracy or 0.0) * trained),
            trained,
        )


class ProximalLearner(AveragingLearner):
    """FedProx's client: a spring of strength `mu` between its model and the global one."""

    def __init__(self, course: FedAvg, *parts: Any, mu: float = PROXIMAL, **options: Any) -> None:
        super().__init__(course, *parts, **options)
        self._mu = mu

    def _work(self, arrays: Arrays, kept: Kept) -> tuple[dict[str, Array], Kept]:
        received = arrays[WEIGHTS]
        anchors = split_vector(received, self._layout, self._device)
        pairs = [(parameter, anchors[name]) for name, parameter in self.model.named_parameters()]

        def objective(batch: Batch) -> torch.Tensor:
            squared = torch.stack([(parameter - anchor).square().sum() for parameter, anchor in pairs]).sum()
            return batch.loss + self._mu / 2 * squared

        self._train(received, kept, objective)
        return {WEIGHTS: self._moved(received)}, Kept(kept.rounds + 1)


def contrastive_loss(
    representation: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean model-contrastive loss of representations (B, D), a scalar in nats; log 2 where both are equally near."""
    towards = functional.cosine_similarity(representation, positive, dim=1) / temperature
    away = functional.cosine_similarity(representation, negative, dim=1) / temperature
    return functional.softplus(away - towards).mean()


class ContrastiveLearner(AveragingLearner):
    """MOON's client: near the global model's representations, and away from its own last ones."""

    def __init__(
        self,
        course: FedAvg,
        *parts: Any,
        mu: float = CONTRAST,
        temperature: float = CONTRAST_TEMPERATURE,
        **options: Any,
    ) -> None:
        super().__init__(course, *parts, **options)
        self._mu, self._temperature = mu, temperature

    def _work(self, arrays: Arrays, kept: Kept) -> tuple[dict[str, Array], Kept]:
        received, classes = arrays[WEIGHTS], self._data.classes
        current = self._reference(self.model)
        write_vector(current, self._layout, received)
        previous = self._reference(current) if kept.model is None else kept.model
        with ExitStack() as stack:
            mine, globally, before = (
                stack.enter_context(watched(model, classes)) for model in (self.model, current, previous)
            )

            def objective(batch: Batch) -> torch.Tensor:
                with torch.no_grad():
                    current(batch.images)
                    previous(batch.images)
                contrast = contrastive_loss(mine(), globally(), before(), self._temperature)
                return batch.loss + self._mu * contrast

            self._train(received, kept, objective)
        return {WEIGHTS: self._moved(received)}, Kept(kept.rounds + 1, model=self._reference(self.model))

    @staticmethod
    def _reference(model: nn.Module) -> nn.Module:
        return deepcopy(model).requires_grad_(False).eval()


class ControlledLearner(AveragingLearner):
    """SCAFFOLD's client; its course is `Scaffold`."""

    def __init__(self, course: Scaffold, *parts: Any, **options: Any) -> None:
        super().__init__(course, *parts, **options)
        self._trained, self._clip = trained(self._layout), float(course.settings.variate_clip)

    def _work(self, arrays: Arrays, kept: Kept) -> tuple[dict[str, Array], Kept]:
        received, common = arrays[WEIGHTS], arrays[VARIATE]
        own = np.zeros(len(common), dtype=np.float32) if kept.variate is None else kept.variate
        write_vector(self.model, self._layout, received)
        before = read_vector(self.model, self._trained)
        correction = split_vector(common - own, self._trained, self._device)
        reach = self._train(received, kept, correction=correction)
        moved = (before - read_vector(self.model, self._trained)) / np.float32(max(reach, 1.0) * self._settings.lr)
        change = np.clip(moved - common, -self._clip, self._clip)
        changes = {WEIGHTS: self._moved(received), VARIATE: change}
        return changes, Kept(kept.rounds + 1, variate=own + change)
