"""The engine `ray`: actors of a Ray cluster, spread over its machines, one processor each.

Published sums are put into Ray's object store once for all workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from secure_codream.cluster import Cluster
from secure_codream.simulation.virtual.engines import AHEAD, Lost, Spared, chunks, shares
from secure_codream.simulation.virtual.host import Answer, Letter, VirtualHost
from secure_codream.simulation.virtual.scene import Scene


class Played:
    """A worker's part: what is called from afar."""

    def __init__(self, scene: Scene, first: int, last: int) -> None:
        self._host = VirtualHost(scene, first, last)

    def answers(self, members: tuple[int, ...], data: bytes, frames: tuple[bytes, ...]) -> list[Answer]:
        """Hand on a letter; its frames stand in the object store."""
        return list(self._host.answer(Letter(members, data, frames)))

    def spared(self) -> Spared:
        """What was computed once for several."""
        remembered = self._host.remembered
        return Spared(remembered.checks, remembered.agreements)


@dataclass
class _Worker:
    actor: Any
    members: tuple[int, int]
    waiting: deque[tuple[Letter, Any]] = field(default_factory=deque)
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
        stored = {id(letter.frames): self._ray.put(letter.frames) for letter in letters if letter.frames}
        given: dict[Any, _Worker] = {}
        for worker in self._workers:
            worker.waiting = deque(
                (chunk, stored.get(id(chunk.frames), ())) for chunk in chunks(letters, *worker.members)
            )
            worker.given = 0
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
                    worker.waiting.clear()
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
        while worker.waiting and worker.given < AHEAD:
            letter, frames = worker.waiting.popleft()
            given[worker.actor.answers.remote(letter.members, letter.data, frames)] = worker
            worker.given += 1
