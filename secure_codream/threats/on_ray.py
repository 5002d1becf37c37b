"""The suite on a Ray cluster: each attack with its control is a task, in a process of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from secure_codream.cluster import Cluster
from secure_codream.threats.laboratory.attack import Verdict
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.suite import Entry, Finding, Progress, all_attacks, prove


def run_on_ray(
    entries: Sequence[Entry],
    laboratory: Callable[[], Laboratory],
    progress: Progress,
    *,
    own: Sequence[str],
    jobs: int,
    address: str | None = None,
) -> list[Finding]:
    """Run attacks as `run_suite` does, several at a time.

    Args:
        entries: which.
        laboratory: makes a fresh one, of the same seed, for each run; it is sent to the workers.
        progress: told of each.
        own: where a user's own attacks come from; see `all_attacks`.
        jobs: how many attacks at a time.
        address: of the cluster; None makes one of this machine.

    Returns:
        The findings in the entries' order. An attack whose worker was lost has crashed.
    """
    cluster = Cluster(jobs, address)
    try:
        task = cluster.ray.remote(_prove).options(num_cpus=1, max_retries=0)
        waiting, running = deque(entries), dict[Any, Entry]()
        found: dict[str, Finding] = {}
        while waiting or running:
            while waiting and len(running) < jobs:
                entry = waiting.popleft()
                progress(entry, None)
                running[task.remote(tuple(own), entry.attack.name, laboratory)] = entry
            (done, *_), _ = cluster.ray.wait(list(running))
            entry = running.pop(done)
            try:
                finding = Finding(entry, *cluster.ray.get(done))
            except cluster.ray.exceptions.RayError as error:
                finding = Finding(entry, Verdict.CRASHED, None, None, f"its worker was lost: {error}", 0.0)
            found[entry.attack.name] = finding
            progress(entry, finding)
    finally:
        cluster.close()
    return [found[entry.attack.name] for entry in entries]


def _prove(own: tuple[str, ...], name: str, laboratory: Callable[[], Laboratory]) -> tuple[Any, ...]:
    """The finding of an attack but for its entry, which holds what cannot be sent."""
    import torch

    torch.set_num_threads(1)
    entry = next(entry for entry in all_attacks(own) if entry.attack.name == name)
    finding = prove(entry, laboratory)
    return finding.verdict, finding.evidence, finding.control, finding.reason, finding.seconds
