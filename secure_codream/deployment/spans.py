"""Watches where a party's time goes, and writes `spans.json` into its folder as it ends."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from codream_protocols import spans as parts_of_sums
from codream_protocols.course import Array, Learner, Publication, Task
from codream_protocols.specs import VectorSpec
from secure_codream.reports.spans import Span, Spans, Total, write_spans

_MOST_SPANS = 5000


class _Recorder:
    """Spans of all threads; what lies within another span is not counted."""

    def __init__(self) -> None:
        self._began, self._lock, self._at_work = time.process_time(), threading.Lock(), threading.local()
        self._totals: dict[str, Total] = {}
        self._latest: deque[Span] = deque(maxlen=_MOST_SPANS)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """What this thread does meanwhile, under a name."""
        if getattr(self._at_work, "busy", False):
            yield
            return
        self._at_work.busy = True
        when, clock, processor = time.time(), time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            processor, clock = time.thread_time() - processor, time.perf_counter() - clock
            self._at_work.busy = False
            with self._lock:
                before = self._totals.get(name) or Total(times=0, processor=0.0, clock=0.0)
                self._totals[name] = Total(
                    times=before.times + 1, processor=before.processor + processor, clock=before.clock + clock
                )
                self._latest.append(Span(name, when, clock))

    def found(self) -> Spans:
        """All so far."""
        with self._lock:
            processor = time.process_time() - self._began
            return Spans(processor=processor, totals=dict(self._totals), latest=list(self._latest))


class Watch:
    """A party's watch, or none: where nothing is kept, nothing is measured."""

    def __init__(self, recorder: _Recorder | None) -> None:
        self._recorder = recorder

    def learner(self, learner: Learner) -> Learner:
        """The learner, its work watched."""
        return learner if self._recorder is None else _WatchedLearner(learner, self._recorder)


class _WatchedLearner:
    def __init__(self, learner: Learner, recorder: _Recorder) -> None:
        self._learner, self._recorder = learner, recorder

    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
        """See `Learner`."""
        with self._recorder.span("computing"):
            return self._learner.compute(task, spec)

    def learn(self, number: int, publication: Publication) -> None:
        """See `Learner`."""
        with self._recorder.span("learning"):
            self._learner.learn(number, publication)


@contextmanager
def watched(folder: Path, wanted: bool) -> Iterator[Watch]:
    """Watch all machines of this process, and at the end write `spans.json` into the folder."""
    if not wanted:
        yield Watch(None)
        return
    recorder = _Recorder()
    parts_of_sums.watch(recorder.span)
    try:
        yield Watch(recorder)
    finally:
        parts_of_sums.watch(None)
        write_spans(folder, recorder.found())
