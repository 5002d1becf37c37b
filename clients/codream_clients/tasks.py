"""A participant's answers to the server's tasks, as the blocks of a step's vector.

The runner, the in-process federation and the threat suite call `Learner.compute`; none of them knows of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from codream_clients.ledger import LedgerError
from codream_clients.participant import Metrics, Participant
from codream_protocols.errors import VectorRefused
from codream_protocols.ring import clipped_fraction
from codream_protocols.tasks import LEARN, LOGITS, METRIC_NAMES, METRICS, UPDATE

Values = Mapping[str, np.ndarray[Any, Any]]
Arrays = Sequence[np.ndarray[Any, np.dtype[np.float32]]]


class Learner(Protocol):
    """Whatever computes the vectors of a client."""

    def compute(self, task: str, arrays: Arrays, clips: Sequence[float]) -> Values:
        """The blocks of one step's vector, from its public arrays; `clips` are the bounds they will be encoded with."""


class DreamLearner:
    """A `Participant` behind the tasks of CoDream.

    Args:
        participant: the learning.
        weight: this client's secret weight in dream updates, in (0, 1]; without effect where `noised`.
        noised: whether the federation has client-level noise: then updates are the change of the dreams and no more.
        shape: (C, H, W) of the images it agrees to dream.
        classes: K of the soft labels that it takes; None takes any. There must be one for each dream and each view.
        tells_accuracy: whether the server gets this client's accuracies in the sum; if not, it gets what a client
            without test images says.
        on_metrics: called with the metrics after each acquisition, for the client's own folder.
    """

    def __init__(
        self,
        participant: Participant,
        *,
        shape: tuple[int, int, int],
        classes: int | None = None,
        weight: float = 1.0,
        noised: bool = False,
        tells_accuracy: bool = True,
        on_metrics: Any = lambda metrics: None,
    ) -> None:
        self._participant, self._weight, self._on_metrics = participant, weight, on_metrics
        self._shape, self._classes, self._noised = shape, classes, noised
        self._tells_accuracy = tells_accuracy

    def compute(self, task: str, arrays: Arrays, clips: Sequence[float]) -> Values:
        """See `Learner`.

        Raises:
            VectorRefused: an unknown task, arrays of another form than it has, or a privacy budget that is spent.
        """
        expected = 2 if task in (METRICS, LEARN) else 1
        if len(arrays) != expected or arrays[0].ndim != 4 or arrays[0].shape[1:] != self._shape:
            raise VectorRefused(
                f"arrays of shapes {[array.shape for array in arrays]} for task {task!r}",
                f"{expected}, the first of shape (B, {', '.join(map(str, self._shape))})",
            )
        dreams = np.array(arrays[0])  # torch wants a writable copy
        if task == UPDATE:
            share = self._participant.dream_update(dreams)
            clipped = np.clip(share.delta, -clips[0], clips[0])
            if self._noised:
                return {"dreams": clipped}
            return {
                "dreams": clipped * self._weight,
                "weight": np.array([self._weight]),
                "entropy": np.array([share.entropy * self._weight]),
                "clipped": np.array([clipped_fraction(share.delta, clips[0]) * self._weight]),
            }
        if task == LOGITS:
            labels = self._participant.soft_labels(dreams)
            return {"numerators": labels.numerators, "denominators": labels.denominators}
        if task in (METRICS, LEARN):
            self._check_labels(len(dreams), arrays[1])
            metrics = self._acquire(dreams, np.array(arrays[1]))
            self._on_metrics(metrics)
            if task == LEARN:
                return {"done": np.ones(1)}
            return {"metrics": _figures(metrics) if self._tells_accuracy else np.zeros(len(METRIC_NAMES))}
        raise VectorRefused(f"task {task!r}", f"{UPDATE}, {LOGITS}, {METRICS} or {LEARN}")

    def _acquire(self, dreams: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Metrics:
        try:
            return self._participant.acquire(dreams, labels)
        except LedgerError as error:
            # What is spent follows from how many records there are, so the server is not told; the log is.
            raise VectorRefused("training past the privacy budget", "what the ledger still allows") from error

    def _check_labels(self, batch: int, labels: np.ndarray[Any, Any]) -> None:
        count = batch * (1 + self._participant.settings.views)
        if labels.ndim != 2 or len(labels) != count or labels.shape[1] != (self._classes or labels.shape[1]):
            raise VectorRefused(f"soft labels of shape {labels.shape}", f"({count}, {self._classes or 'K'})")


def _figures(metrics: Metrics) -> np.ndarray[Any, Any]:
    """What leaves the client: 0 for its accuracy on its own images where they are private, as without test images."""
    tested = metrics.accuracy is not None
    return np.array([metrics.accuracy or 0.0, float(tested), metrics.train_accuracy or 0.0])
