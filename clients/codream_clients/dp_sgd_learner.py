"""The learner of the course dp-sgd: its records' noised part of each step, and the common model that comes of it.

    course = DPSGD(DPSGDSettings(layout=trained_layout(model), ...))
    learner = DPSGDLearner(course, model, data, charge=ledger.reserve, noise=NoiseSource(), device=...)

A step is charged, for good, before its vector is handed over. A ledger that refuses ends nothing: what is raised here
makes the protocol send zeros, with the share of noise that the others count on.

A client of another architecture has the common model handed down in the end (`HandedDown`), from public images: that is
processing of what everybody has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from torch import nn

from codream_clients.data.datasets import LabelledImages
from codream_clients.dream_learner import OnMetrics
from codream_clients.learning.handed_down import HandedDown
from codream_clients.learning.participant import Metrics, measured
from codream_clients.models.gate import trial_images
from codream_clients.models.layouts import check_same_layout, trained_layout, write_vector
from codream_clients.models.refusals import GIVEN
from codream_clients.privacy.accounting import SampledGaussian
from codream_clients.privacy.gate import examine_private
from codream_clients.privacy.noise import NoiseSource
from codream_clients.privacy.record_sums import RecordSums
from codream_clients.privacy.ring_plan import charge_of_step
from codream_protocols.course import Array, Publication, Task
from codream_protocols.courses.dp_sgd import DPSGD, GRADIENT, WEIGHTS
from codream_protocols.errors import VectorRefused
from codream_protocols.record_noise import RecordNoise
from codream_protocols.specs import VectorSpec


class DPSGDLearner:
    """See the module.

    Attributes:
        model: the common model, as the last certified epoch has left it.
        metrics: of it; None before the first.
        own_metrics: of the client's own architecture, once it has learnt from the common one; else None.

    Args:
        course: the course.
        model: of the course's layout.
        data: the client's records.
        charge: pays for a step; what it raises makes the protocol send zeros, and noise.
        noise: where sampling, rounding and all else that is secret come from, but for the noise itself.
        device: where gradients are computed.
        test: images to measure the model on; None where there are none.
        on_metrics: called with the common model's figures after each epoch, and in the end with those of its own.
        own: the client's own architecture, and what it learns from; None keeps the common model.
        name: the model's, for errors.
        records: the public number of the client's records; None where there is none.

    Raises:
        LayoutError: a model of another layout.
        ModelRefused: a model whose gradients are not each record's own.
    """

    def __init__(
        self,
        course: DPSGD,
        model: nn.Module,
        data: LabelledImages,
        *,
        charge: Callable[[SampledGaussian], object],
        noise: NoiseSource,
        device: torch.device,
        test: LabelledImages | None = None,
        on_metrics: OnMetrics = lambda metrics: None,
        own: HandedDown | None = None,
        name: str = GIVEN,
        records: int | None = None,
    ) -> None:
        self._layout = course.settings.layout
        check_same_layout(trained_layout(model), self._layout)
        trial = trial_images(data.shape, classes=data.classes, device=device)
        examine_private(model, trial, classes=data.classes, name=name, modes=("hooks",))
        self.model = model.to(device).eval()
        self.metrics: Metrics | None = None
        self.own_metrics: Metrics | None = None
        self._course, self._charge, self._device = course, charge, device
        self._test, self._on_metrics, self._own = test, on_metrics, own
        self._trained = deepcopy(self.model)  # at states that are not certified, which nobody is to see
        self._sums = RecordSums(
            self._trained,
            data,
            rate=course.settings.sample_rate,
            stream=noise.stream(0),
            device=device,
            records=records,
        )

    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
        """See `Learner`: the integer sum, which the protocol clamps and noises.

        Raises:
            VectorRefused: an unknown task, or a vector without noise for records.
            LedgerError: the budget is spent.
        """
        if task.name != GRADIENT:
            raise VectorRefused(f"task {task.name!r}", GRADIENT)
        self._charge(charge_of_step(self._course, spec))
        assert isinstance(spec.noise, RecordNoise)  # noqa: S101 - charged
        write_vector(self._trained, self._layout, task.arrays[WEIGHTS])
        return {GRADIENT: self._sums.draw(spec.noise)}

    def learn(self, number: int, publication: Publication) -> None:
        """See `Learner`: the common model is measured on test images, never on records."""
        write_vector(self.model, self._layout, self._course.model(publication)[WEIGHTS])
        self.metrics = measured(self.model, None, self._test, self._device, rounds=number)
        self._on_metrics(self.metrics)
        if self._own is not None and number == self._course.epochs:
            loss = self._own.learn_from(self.model, self._device)
            self.own_metrics = measured(
                self._own.model, None, self._test, self._device, rounds=number, distil_loss=loss
            )
            self._on_metrics(self.own_metrics)
