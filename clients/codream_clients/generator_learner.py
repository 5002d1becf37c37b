"""The learner of CoDream-fast's course: dreams are G(z), and a client's changes of z and of G are what it sends.

    layout = generator_layout(shape, noise)                        # for `GeneratorSettings`
    learner = GeneratorLearner(course, participant, shape=..., loss=..., student=..., adversarial_from=...)

The course knows G's weights and z alone; each client makes the images itself. What the participant's settings say of
`views` must be 0: the course labels the generated images alone. The memory of the teacher's feature statistics is
staged until an epoch is certified. Weights of the loss and the generator's architecture: `generators`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from codream_clients.dream_learner import OnMetrics, learn_images, metrics_values, recall_images
from codream_clients.learning.dreaming import Dreams, StatisticsMemory, first_target
from codream_clients.learning.generators import GeneratorLoss, ImageGenerator, adapt, fresh_image_generator, generate
from codream_clients.learning.participant import Participant
from codream_clients.learning.student import Student
from codream_clients.models.layouts import check_model_layout, layout_of, read_vector, write_vector
from codream_protocols.course import Array, Arrays, Publication, Task
from codream_protocols.courses.generator import ADVERSARIAL_FROM, GENERATOR, CoDreamFast
from codream_protocols.courses.labels import LOGITS
from codream_protocols.courses.layouts import Layout
from codream_protocols.courses.metrics import METRICS
from codream_protocols.errors import VectorRefused
from codream_protocols.settings import SettingsError
from codream_protocols.specs import VectorSpec

WIDTH = 64
"""Channels of the generator's last block."""


def make_generator(shape: tuple[int, int, int], noise: int, width: int = WIDTH) -> ImageGenerator:
    """A generator of images (C, H, W) from `noise` numbers each, whose weights are to be replaced."""
    return fresh_image_generator(noise, shape, width, seed=0)


def generator_layout(shape: tuple[int, int, int], noise: int, width: int = WIDTH) -> Layout:
    """The layout of such a generator, for `GeneratorSettings`."""
    return layout_of(make_generator(shape, noise, width))


class GeneratorLearner:
    """A `Participant` behind the tasks of CoDream-fast.

    Args:
        course: the course, whose settings are the generator's.
        participant: the learning; its teacher judges the images.
        shape: (C, H, W) of an image.
        loss: the weights of the clients' loss.
        width: channels of the generator's last block.
        bn_momentum: share of earlier batches in R_bn's statistics.
        student: the student on dreams alone, for the adversarial term; a simulation's clients may share one. None
            leaves the term out.
        adversarial_from: the round, from 0, from which on it counts.
        tells_accuracy: whether its counts are in the sum of metrics; if not, zeros are.
        on_metrics: called with the metrics after each round learnt.
        certified: epochs that were certified before the first one learnt here, those of a predecessor.

    Raises:
        LayoutError: a generator of another layout than the course's.
        SettingsError: a participant that labels views.
    """

    def __init__(
        self,
        course: CoDreamFast,
        participant: Participant,
        *,
        shape: tuple[int, int, int],
        loss: GeneratorLoss | None = None,
        width: int = WIDTH,
        bn_momentum: float = 0.9,
        student: Student | None = None,
        adversarial_from: int = ADVERSARIAL_FROM,
        tells_accuracy: bool = True,
        on_metrics: OnMetrics = lambda metrics: None,
        certified: int = 0,
    ) -> None:
        if participant.settings.views:
            raise SettingsError(f"views is {participant.settings.views}; 0 is allowed in CoDream-fast")
        self._settings, self._participant, self._loss = course.settings, participant, loss or GeneratorLoss()
        self._generator = make_generator(shape, course.settings.noise, width).to(participant.device)
        check_model_layout(self._generator, course.settings.layout)
        self._student, self._adversarial_from = student, adversarial_from
        self._tells_accuracy, self._on_metrics, self._rounds = tells_accuracy, on_metrics, certified
        self._memory = StatisticsMemory(bn_momentum)
        self._staged = self._memory.copy()

    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
        """See `Learner`.

        Raises:
            VectorRefused: an unknown task.
        """
        if task.name == METRICS:
            self._staged = self._memory.copy()  # an epoch begins
            return metrics_values(self._participant.counts, tells=self._tells_accuracy)
        if task.name == GENERATOR:
            return self._shape(task.arrays)
        if task.name == LOGITS:
            labels = self._participant.soft_labels(self._images(task.arrays["generator"], task.arrays["noise"]))
            return {"numerators": labels.numerators, "denominators": labels.denominators}
        raise VectorRefused(f"task {task.name!r}", f"{METRICS}, {GENERATOR} or {LOGITS}")

    def learn(self, number: int, publication: Publication) -> None:
        """See `Learner`; nothing is learnt from an epoch of metrics alone. The student learns it in any case.

        Raises:
            LedgerError: the budget allows no training on own data; the model stays as the dreams have made it.
        """
        self._rounds, self._memory = number, self._staged
        if "soft_labels" not in publication:
            return
        images, labels = self._published(publication)
        learn_images(self._participant, images, labels, number, student=self._student, on_metrics=self._on_metrics)

    def recall(self, number: int, publication: Publication) -> None:
        """A round that an earlier process of this client has learnt: for the window and the student, in order."""
        self._rounds = number
        if "soft_labels" not in publication:
            return
        images, labels = self._published(publication)
        recall_images(self._participant, images, labels, number, student=self._student)

    def _shape(self, arrays: Arrays) -> dict[str, Array]:
        settings, noise, layout = self._settings, np.array(arrays["noise"]), self._settings.layout
        write_vector(self._generator, layout, arrays["generator"])
        counts = self._student is not None and self._student.learnt and self._rounds >= self._adversarial_from
        moved = adapt(
            self._generator,
            noise,
            self._participant.teacher,
            self._loss,
            steps=settings.local_steps,
            lr=settings.lr,
            noise_lr=settings.noise_lr,
            seen=self._participant.seen,
            first=first_target(self._rounds, len(noise), self._participant.classes),
            memory=self._staged,
            student=self._student.model if self._student is not None and counts else None,
        )
        return {"noise": moved - noise, "generator": read_vector(self._generator, layout) - arrays["generator"]}

    def _images(self, weights: Array, noise: Array) -> Dreams:
        write_vector(self._generator, self._settings.layout, weights)
        with torch.no_grad():
            return generate(self._generator, np.array(noise))

    def _published(self, publication: Publication) -> tuple[Dreams, Dreams]:
        batches = zip(publication["generators"], publication["noises"], strict=True)
        images = np.concatenate([self._images(weights, noise) for weights, noise in batches])
        return images, np.array(publication["soft_labels"])
