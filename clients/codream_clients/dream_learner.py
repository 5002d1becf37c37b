"""A participant's answers to the steps of CoDream's course, as the blocks of each step's vector.

    learner = DreamLearner(participant, weight=..., tells_accuracy=..., on_metrics=..., adaptive=...)

The runner and the simulation call `compute` and `learn` (`codream_protocols.course.Learner`); neither knows of models.
The other courses' learners: `parameter_learner` (FedAvg, FedProx, MOON, SCAFFOLD), `generator_learner` (CoDream-fast),
`dp_sgd_learner` and `function_learner` (sums, and functions of one's own).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from codream_clients.learning.distillation import distil
from codream_clients.learning.dreaming import first_target
from codream_clients.learning.participant import Distillation, Metrics, Participant
from codream_clients.learning.student import AdaptiveTerm, Student
from codream_clients.learning.votes import learn_votes
from codream_clients.privacy.ledger import LedgerError
from codream_protocols.course import Array, Publication, Task
from codream_protocols.courses.codream import UPDATE
from codream_protocols.courses.contrast import CONTRAST
from codream_protocols.courses.labels import LOGITS, VOTES, LabelBy
from codream_protocols.courses.metrics import COUNTS, HELD, METRICS
from codream_protocols.errors import VectorRefused
from codream_protocols.specs import VectorSpec

Values = dict[str, Array]
OnMetrics = Callable[[Metrics], object]
HandOver = Callable[[torch.Tensor], Any]
"""What a machine is given for numbers on a device: an array, or what it has masked there."""


def metrics_values(counts: tuple[int, int, int, int], *, tells: bool) -> Values:
    """The blocks of a step of metrics: `participant.Participant.counts`, or zeros from who does not tell."""
    return {name: np.array([count if tells else 0]) for name, count in zip(COUNTS, counts, strict=True)}


def fetched(tensor: torch.Tensor) -> Any:
    """As an array, from whatever device."""
    return tensor.cpu().numpy()


def distillation_of(label_by: LabelBy) -> Distillation:
    """What learns from labels of that kind."""
    return learn_votes if label_by == VOTES else distil


def learn_images(
    participant: Participant,
    images: Array,
    labels: Array,
    number: int,
    *,
    student: Student | None,
    on_metrics: OnMetrics,
    distillation: Distillation = distil,
) -> None:
    """Have a client learn a certified round's `images` (B, C, H, W) and `labels`, and then its copy of the student.

    The student learns in any case: it is every client's alike, and knows nothing of how this one fares.

    Raises:
        LedgerError: the budget allows no training on own data; the model stays as the dreams have made it.
    """
    try:
        on_metrics(participant.acquire(images, labels, number, distillation=distillation))
    except LedgerError:
        on_metrics(participant.measure(number=number))
        raise
    finally:
        if student is not None:
            student.learn(number, images, labels)


def recall_images(
    participant: Participant, images: Array, labels: Array, number: int, *, student: Student | None
) -> None:
    """What an earlier process of this client has learnt, in order: for the window, and the student, which learns it."""
    participant.recall(images, labels, number)
    if student is not None:
        student.learn(number, images, labels)


class DreamLearner:
    """A `Participant` behind the tasks of CoDream.

    Args:
        participant: the learning; its views, way and clips are those of the course's settings.
        weight: this client's secret weight in dream updates, in (0, 1]; without effect where there is noise.
        tells_accuracy: whether its counts are in the sum of metrics; if not, zeros are, as of who has no images.
        on_metrics: called with the metrics after each round learnt, for the client's own folder.
        adaptive: the adaptive term, trained here and added to this client's own dream loss; None leaves it out.
        certified: epochs that were certified before the first one learnt here, those of a predecessor.
        distillation: what labels are learnt by; `distillation_of` the course's settings.
        hand_over: makes of an update on the device what the machine is given.
    """

    def __init__(
        self,
        participant: Participant,
        *,
        weight: float = 1.0,
        tells_accuracy: bool = True,
        on_metrics: OnMetrics = lambda metrics: None,
        adaptive: AdaptiveTerm | None = None,
        certified: int = 0,
        distillation: Distillation = distil,
        hand_over: HandOver = fetched,
    ) -> None:
        self._distillation, self._hand_over = distillation, hand_over
        self._participant, self._weight, self._on_metrics = participant, weight, on_metrics
        self._tells_accuracy, self._adaptive, self._rounds = tells_accuracy, adaptive, certified

    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
        """See `Learner`.

        Raises:
            VectorRefused: an unknown task.
        """
        if task.name == METRICS:
            values = metrics_values(self._participant.counts, tells=self._tells_accuracy)
            if HELD[0] not in {block.name for block in spec.blocks}:
                return values
            held = zip(HELD, self._participant.held_counts, strict=True)  # asked by the charter, for the run's end
            return {**values, **{name: np.array([count]) for name, count in held}}
        if task.name == CONTRAST:
            return self._participant.contrast(self._weight)
        if task.name == UPDATE:
            return self._update(np.array(task.arrays["dreams"]), spec)  # torch wants a writable copy
        if task.name == LOGITS:
            labels = self._participant.soft_labels(np.array(task.arrays["dreams"]))
            return {"numerators": labels.numerators, "denominators": labels.denominators}
        if task.name == VOTES:
            return {"votes": self._participant.votes(np.array(task.arrays["dreams"]))}
        raise VectorRefused(f"task {task.name!r}", f"{METRICS}, {CONTRAST}, {UPDATE}, {LOGITS} or {VOTES}")

    def learn(self, number: int, publication: Publication) -> None:
        """See `Learner`; nothing is learnt from an epoch of metrics alone.

        The adaptive student learns it in any case.

        Raises:
            LedgerError: the budget allows no training on own data; the model stays as the dreams have made it.
        """
        self._rounds = number
        if "dreams" not in publication:
            return
        dreams, labels = np.array(publication["dreams"]), np.array(publication["soft_labels"])
        learn_images(
            self._participant,
            dreams,
            labels,
            number,
            student=self._student,
            on_metrics=self._on_metrics,
            distillation=self._distillation,
        )

    def recall(self, number: int, publication: Publication) -> None:
        """A round that an earlier process of this client has learnt: for the window and the student, in order."""
        self._rounds = number
        if "dreams" not in publication:
            return
        dreams, labels = np.array(publication["dreams"]), np.array(publication["soft_labels"])
        recall_images(self._participant, dreams, labels, number, student=self._student)

    @property
    def _student(self) -> Student | None:
        return None if self._adaptive is None else self._adaptive.student

    def _update(self, dreams: Array, spec: VectorSpec) -> Values:
        extra = None if self._adaptive is None else self._adaptive.term(self._rounds)
        first = first_target(self._rounds, len(dreams), self._participant.classes)
        share = self._participant.dream_update(dreams, extra=extra, first=first)
        clip = spec.blocks[0].clip
        clipped = share.moved.clamp(-clip, clip)
        if spec.noise is not None:  # weights are 1 for everybody, and no figures are told
            return {"dreams": fetched(clipped)}
        weighted, beyond = clipped * self._weight, share.moved.abs() > clip
        return {
            "dreams": self._hand_over(weighted),
            "weight": np.array([self._weight]),
            "entropy": np.array([share.entropy * self._weight]),
            "clipped": np.array([float(beyond.double().mean()) * self._weight]),
        }
