"""The command that runs thousands of virtual clients."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import asdict

from secure_codream.command_parts import (
    EngineName,
    InEngine,
    Json,
    LossesName,
    OfCluster,
    check_cluster,
    console,
    say,
    say_json,
    usual_jobs,
)

if TYPE_CHECKING:
    from secure_codream.simulation.virtual.engines import MakeEngine


class ModeName(StrEnum):
    """How sums are made."""

    LOCKSTEP = "lockstep"
    RESILIENT = "resilient"


def simulate(
    members: Annotated[int, typer.Option(min=3, help="Virtual clients.")] = 20,
    dimension: Annotated[int, typer.Option(min=1, help="Coordinates of a vector.")] = 10_000,
    steps: Annotated[int, typer.Option(min=1, max=4096, help="Vectors that each client sends.")] = 10,
    mode: Annotated[ModeName, typer.Option(help="How sums are made.")] = ModeName.RESILIENT,
    losses: Annotated[LossesName, typer.Option(help="Sums over whole blocks, or over whoever is there.")] = (
        LossesName.BLOCKS
    ),
    bits: Annotated[
        int, typer.Option(min=2, max=24, help="Of one value; those of the members' number come on top.")
    ] = 16,
    colluders: Annotated[int, typer.Option(min=1, help="Members that may collude with the server.")] = 1,
    drop: Annotated[float, typer.Option(min=0, max=0.99, help="Share of clients silent in each step.")] = 0.0,
    engine: InEngine = EngineName.LOCAL,
    workers: Annotated[int | None, typer.Option(min=1, help="One for each core unless given.")] = None,
    cluster: OfCluster = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of keys, inputs and silences.")] = 0,
    latency: Annotated[
        float, typer.Option(min=0, max=1e6, help="Of the virtual network: milliseconds of one way.")
    ] = 20.0,
    bandwidth: Annotated[
        float, typer.Option(min=0, max=1e6, help="Megabit a second of each client; 0: no limit.")
    ] = 100.0,
    json: Json = False,
) -> None:
    """One epoch of secure sums with many virtual clients: the real machines of both sides, and a virtual network."""
    from codream_protocols.charter import Aggregation
    from secure_codream.simulation.virtual.network import MEGABIT, Network
    from secure_codream.simulation.virtual.run import Run
    from secure_codream.simulation.virtual.scene import Scene
    from secure_codream.simulation.virtual.view import SimulationView, degree_line, outcome_tables, spared_line

    if mode is ModeName.LOCKSTEP and drop:
        raise typer.BadParameter(
            "found silences in lockstep, which waits for everybody; resilient tolerates them", param_hint="--drop"
        )
    check_cluster(engine, cluster)
    aggregation = Aggregation(
        mode=mode.value,
        colluders=colluders,
        least_survivors=colluders + 2,
        losses=losses.value,
        value_bits=bits,
    )
    scene = Scene(members=members, dimension=dimension, steps=steps, aggregation=aggregation, drop=drop, seed=seed)
    degree = scene.plan().degree
    count = workers or usual_jobs()
    network = Network(latency / 1000, bandwidth * MEGABIT)
    screen = console(stderr=json)
    if degree is not None:
        say(screen, degree_line(scene, degree))
    make = _engine(engine, cluster)
    with SimulationView(screen) as view, make(scene, count) as running:
        outcome = Run(scene, running, network, view.feed).epoch()
    if json:
        named = {**asdict(scene), "aggregation": asdict(aggregation)}
        told = {"scene": named, "engine": engine.value, "workers": count, "network": network, "outcome": outcome}
        say_json({**told, "degree": degree and degree._asdict()})
        return
    for table in outcome_tables(scene, outcome):
        screen.print(table)
    say(screen, spared_line(outcome))
    if outcome.lost:
        say(screen, f"{outcome.lost} virtual clients were lost with their worker", style="yellow")


def _engine(engine: EngineName, cluster: str | None) -> MakeEngine:
    if engine is EngineName.RAY:
        from secure_codream.simulation.virtual.on_ray import RayEngine

        return partial(RayEngine, address=cluster)
    from secure_codream.simulation.virtual.processes import LocalEngine

    return LocalEngine
