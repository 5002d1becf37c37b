"""What a client writes as it learns: `model.safetensors`, the best one, `metrics.jsonl`, its sums, and its failures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from codream_clients.learning.participant import Metrics
from codream_protocols.course import Learner, Publication
from secure_codream.deployment.checkpoint import CheckpointError, checkpoint_bytes, go_on
from secure_codream.deployment.description import Description, Figures, figures_of
from secure_codream.deployment.files import BEST, MODEL, SUMS, EventLog, sums_bytes
from secure_codream.reports.files import write_whole

if TYPE_CHECKING:
    from torch import nn

    from codream_clients.learning.judge import Judge, Weights


class OutputsUnwritten(RuntimeError):
    """The federation is over, and what was learnt from it is not on disk."""


class Outputs:
    """The model and the sums on disk after each epoch, and how many epochs they have learnt.

    The thread that learns cannot be stopped: it may outlive its client, whose folder another process has taken over by
    then. So nothing is written after `close`. A disk that fails stops nobody: what could not be written is tried again
    with the next epoch, and at the end.

    Args:
        folder: the client's.
        figures: where metrics go.
        sums: whether what was published is kept as a file.
        tells: whether the model's file may say what was measured.
        failed: called with what cannot be written, and why.
    """

    def __init__(
        self,
        folder: Path,
        figures: EventLog,
        *,
        sums: bool,
        tells: bool,
        failed: Callable[[str, OSError], object],
    ) -> None:
        self.exists = (folder / MODEL).is_file()
        self.learnt = 0
        self._folder, self._figures, self._sums, self._tells, self._failed = folder, figures, sums, tells, failed
        self._model: nn.Module | None = None
        self._description: Description | None = None
        self._measured: Figures | None = None
        self._judge: Judge | None = None
        self._best: Weights | None = None
        self._unwritten: dict[str, bytes] = {}
        self._lock, self._closed = Lock(), False

    def take(
        self, model: nn.Module | None, description: Description | None, certified: int, judge: Judge | None = None
    ) -> int:
        """Go on with the weights that are there, if any; returns how many certified epochs they have learnt.

        Args:
            model: what learns; None where nothing does.
            description: the model's.
            certified: how many epochs are.
            judge: gets the best weights that are there, and has those to be written.

        Raises:
            CheckpointError: they are not of this model under this charter, or have learnt more than `certified` epochs.
        """
        self._model, self._description, self._judge = model, description, judge
        if self.exists and model is not None and description is not None:
            if judge is not None and (self._folder / BEST).is_file():
                judge.judge(model, self._read(BEST, model, description, certified))
                self._best = judge.weights
            self.learnt = self._read(MODEL, model, description, certified)
        return self.learnt

    def _read(self, name: str, model: nn.Module, description: Description, certified: int) -> int:
        path = self._folder / name
        learnt = go_on(path, model, description)
        if learnt > certified:
            raise CheckpointError(
                f"{path}: weights that have learnt {learnt} epochs, {certified} are in the journal; "
                "restore the journal that belongs to them, or move the weights away to train anew"
            )
        return learnt

    def keep(self, metrics: Metrics) -> None:
        """Write figures and weights; the weights say up to which epoch they have learnt."""
        if self._tells:
            self._measured = figures_of(metrics)
        with self._lock:
            if not self._closed:
                try:
                    # A participant counts the rounds of its process; what a person reads are those of the federation.
                    self._figures({"event": "metrics", **vars(metrics), "rounds": self.learnt})
                except OSError as error:
                    self._failed("metrics.jsonl", error)
        self.write()

    def write(self, publication: Publication | None = None) -> None:
        """Write the weights, and what was published."""
        found: dict[str, bytes] = {}
        if self._model is not None and self._description is not None:
            description = replace(self._description, learnt=self.learnt, figures=self._measured)
            found[MODEL] = checkpoint_bytes(self._model, description)
            if self._judge is not None and self._judge.weights is not self._best:
                self._best = self._judge.weights
                found[BEST] = checkpoint_bytes(self._best, replace(description, learnt=self._judge.best_round))
        if self._sums and publication is not None:
            found[SUMS] = sums_bytes(publication)
        with self._lock:
            self._unwritten |= found
            self._write_out()

    def put(self, name: str, content: bytes) -> None:
        """Write another file of the folder in the same way."""
        with self._lock:
            self._unwritten[name] = content
            self._write_out()

    def settle(self) -> None:
        """The federation is over: try again what could not be written.

        Raises:
            OutputsUnwritten: it cannot be written still.
        """
        with self._lock:
            self._write_out()
            if self._unwritten:
                raise OutputsUnwritten(
                    f"{self._folder}: {' and '.join(sorted(self._unwritten))} cannot be written, so what was learnt is "
                    "not on disk; make room and start this client again: it learns it once more from its journal"
                )

    def close(self) -> None:
        """Let go of the folder: returns once nothing is being written, and nothing will be."""
        with self._lock:
            self._closed = True

    def _write_out(self) -> None:
        if self._closed:
            return
        for name, content in list(self._unwritten.items()):
            try:
                write_whole(self._folder / name, content)
            except OSError as error:
                self._failed(name, error)
            else:
                del self._unwritten[name]


class Counted:
    """A learner whose outputs are written, and say which epochs they have learnt."""

    def __init__(self, learner: Learner, outputs: Outputs) -> None:
        self._learner, self._outputs = learner, outputs

    def compute(self, task: Any, spec: Any) -> Any:
        """See `Learner`."""
        return self._learner.compute(task, spec)

    def learn(self, number: int, publication: Publication) -> None:
        """See `Learner`."""
        self._outputs.learnt = number  # what the learner writes on its way already is of this epoch
        self._learner.learn(number, publication)
        self._outputs.write(publication)
