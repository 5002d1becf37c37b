"""The engine `ray`: actors of a Ray cluster, spread over its machines, one processor each.

A message is handed to each of them once, and then to its members, some at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType
from typing import Any

from secure_codream.cluster import Cluster
from secure_codream.simulation.virtual.engines import AHEAD, Lost, Spared, errands, shares
from secure_codream.simulation.virtual.host import Answer, Errand, Letter, VirtualHost
from secure_codream.simulation.virtual.scene import Scene


class Played:
    """A worker's part: what is called from afar."""

    def __init__(self, scene: Scene, first: int, last: int) -> None:
        self._host = VirtualHost(scene, range(first, last))

    def answers(self, errand: Errand) -> list[Answer]:
        """Run an errand; they come in the order in which they were given."""
        return list(self._host.answer(errand))

    def spared(self) -> Spared:
        """What was computed once for several."""
        return Spared.by(self._host.remembered)


@dataclass
class _Worker:
    actor: Any
    members: tuple[int, int]
    waiting: Iterator[Errand] = field(default_factory=lambda: iter(()))
    given: int = 0


class RayEngine:
    """`Engine` on a Ray cluster.

    Args:
        scene: what is simulated.
        workers: how many actors.
        address: of a cluster; None makes one of this machine.

    Raises:
        ExtraMissing: Ray is not installed.
    """

    def __init__(self, scene: Scene, workers: int, address: str | None = None) -> None:
        self._cluster = Cluster(workers, address)
        self._ray = self._cluster.ray
        kind = self._ray.remote(Played).options(num_cpus=1, scheduling_strategy="SPREAD", max_restarts=0)
        self._workers = [_Worker(kind.remote(scene, *share), share) for share in shares(scene.members, workers)]

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            self._ray.kill(worker.actor)
        self._workers.clear()
        self._cluster.close()

    def exchange(self, letters: Sequence[Letter]) -> Iterator[Answer | Lost]:
        """See `Engine`."""
        given: dict[Any, _Worker] = {}
        for worker in self._workers:
            worker.waiting, worker.given = errands(letters, *worker.members), 0
            self._give(worker, given)
        while given:
            (ready, *_), _ = self._ray.wait(list(given))
            worker = given.pop(ready)
            worker.given -= 1
            try:
                answers = self._ray.get(ready)
            except self._ray.exceptions.RayActorError as error:
                if worker in self._workers:
                    self._workers.remove(worker)
                    worker.waiting = iter(())
                    yield Lost(tuple(range(*worker.members)), f"a worker was lost: {type(error).__name__}")
                continue
            self._give(worker, given)
            yield from answers

    def spared(self) -> Spared:
        """See `Engine`."""
        total = Spared()
        for worker in self._workers:
            with suppress(self._ray.exceptions.RayActorError):
                total += self._ray.get(worker.actor.spared.remote())
        return total

    def _give(self, worker: _Worker, given: dict[Any, _Worker]) -> None:
        for errand in islice(worker.waiting, AHEAD - worker.given):
            given[worker.actor.answers.remote(errand)] = worker
            worker.given += 1
