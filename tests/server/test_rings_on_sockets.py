"""Rings of neighbours between sockets, as more than 200 members would stand on: a few, on rings of their own degree."""

from __future__ import annotations

from pathlib import Path

from codream_protocols.charter import Aggregation
from secure_codream.simulation.rings import small_rings
from tests.server.toy import Federation, ToyCourse, run


def test_a_federation_on_rings_comes_to_its_end_without_who_left(tmp_path: Path) -> None:
    """One member goes within the first epoch, which is summed without it, and the next one is made by all others."""
    aggregation = Aggregation(mode="resilient", losses="allow")
    federation = Federation(14, course=ToyCourse(2, 3), aggregation=aggregation)

    async def scenario() -> None:
        async with federation.serving(tmp_path) as server:
            federation.start_all()
            await federation.until(lambda: federation.server.protocol.step)
            plan = federation.server.protocol.plan
            assert plan is not None and plan.degree == (8, 5)
            await federation.clients[3].kill()
            await server

    with small_rings(8, 5):
        run(scenario)
    assert [number for number, _ in federation.published] == [1, 2] and federation.of("epoch_given_up") == []
    first, second = federation.of("round_finished")
    assert len(first["members"]) == 14 and len(second["members"]) == 13
    assert {len(one["survivors"]) for one in federation.of("step_finished")} == {13, 14}
