"""`events.jsonl`: what a server did, one typed JSON object a line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from secure_codream.reports.files import MalformedRecord
from secure_codream.reports.json_lines import json_lines

Count = Annotated[int, msgspec.Meta(ge=0)]


Amount = Annotated[float, msgspec.Meta(ge=0)]


StepPath = Literal["fast", "dropout"]


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    time: float


class FederationStarted(_Event, frozen=True, kw_only=True, tag="federation_started"):
    """The server is there; it waits for the clients of the roster."""

    clients: list[str]
    rounds: Count
    steps_per_round: Count
    mode: str = "lockstep"


class ClientJoined(_Event, frozen=True, kw_only=True, tag="client_joined"):
    """A client of the roster connected."""

    client: str


class ClientLost(_Event, frozen=True, kw_only=True, tag="client_lost"):
    """A client no longer answers."""

    client: str


class EpochStarted(_Event, frozen=True, kw_only=True, tag="epoch_started"):
    """Keys are set up with a cohort for the steps to come."""

    round: Count
    epoch: Count
    cohort: list[str]


class EpochResumed(_Event, frozen=True, kw_only=True, tag="epoch_resumed"):
    """A server that was started again goes on in the epoch that was running; `step` is null outside its steps."""

    round: Count
    epoch: Count
    step: Count | None


class EpochGivenUp(_Event, frozen=True, kw_only=True, tag="epoch_given_up"):
    """An epoch was given up: nothing of it is learnt. `wrong_sum`: because a client saw a sum fail its check."""

    round: Count
    epoch: Count
    reason: str
    wrong_sum: bool = False


class Waiting(_Event, frozen=True, kw_only=True, tag="waiting"):
    """The server waits; `clients` are those that it names, of them `lost` are silent, `refusing` refuse (name -> code).

    With no `clients` it waits for some that are there.

    `heard` says of those that are lost how many seconds ago they were last heard, where they were.

    `bound` have voted for sums that the server does not have.
    """

    clients: list[str]
    lost: list[str]
    phase: str
    seconds: Amount
    heard: dict[str, Amount] = {}
    refusing: dict[str, str] = {}
    bound: list[str] = []


class StepStarted(_Event, frozen=True, kw_only=True, tag="step_started"):
    """The clients compute a step."""

    round: Count
    step: Count
    task: str


class StepFinished(_Event, frozen=True, kw_only=True, tag="step_finished"):
    """A sum was recovered. Entropy (nats) and the clipped share are securely aggregated means.

    `bytes_up` and `bytes_down` are totals of this process so far, over all clients.
    """

    round: Count
    step: Count
    task: str
    survivors: list[str]
    dropped: list[str]
    path: StepPath
    seconds: Amount
    entropy: float | None
    clipped: float | None
    bytes_up: Count
    bytes_down: Count


class RoundFinished(_Event, frozen=True, kw_only=True, tag="round_finished"):
    """An epoch is certified.

    Its metrics, quotients of summed counts, are of the models as they stood before it: after so many rounds as
    `metrics_round` says; after 0 they were trained alone.
    """

    round: Count
    metrics: dict[str, float | None]
    metrics_round: Count | None = None
    learnt: bool = True
    head: str = ""


class Refused(_Event, frozen=True, kw_only=True, tag="refused"):
    """A message was refused, by this side ("server") or by a client, with the refusal's code.

    What was found and what is allowed are for the screen alone: the file has neither.
    """

    client: str
    code: str
    by: str = "server"
    found: str = ""
    allowed: str = ""

    @property
    def ordinary(self) -> bool:
        """Whether it is what a late message, or a party that was started again, comes to; nothing is wrong then."""
        return self.code in ("hello-needed", "unexpected", "wrong-context", "head")


class StorageFailed(_Event, frozen=True, kw_only=True, tag="storage_failed"):
    """Something could not be written, for the `count`-th time; it is tried again."""

    what: str
    reason: str
    count: Count = 1


class FederationFinished(_Event, frozen=True, kw_only=True, tag="federation_finished"):
    """The rounds are done."""

    rounds: Count


Event = (
    FederationStarted
    | ClientJoined
    | ClientLost
    | EpochStarted
    | EpochResumed
    | EpochGivenUp
    | Waiting
    | StepStarted
    | StepFinished
    | RoundFinished
    | Refused
    | StorageFailed
    | FederationFinished
)


_KNOWN_EVENTS = frozenset(
    {
        "federation_started",
        "client_joined",
        "client_lost",
        "epoch_started",
        "epoch_resumed",
        "epoch_given_up",
        "waiting",
        "step_started",
        "step_finished",
        "round_finished",
        "refused",
        "storage_failed",
        "federation_finished",
    }
)


def parse_event(event: Mapping[str, Any]) -> Event | None:
    """The typed form of an event; None for a kind that this version does not know.

    Raises ValueError if the event's fields do not fit its kind.
    """
    kind = event.get("event")
    if not isinstance(kind, str):
        raise ValueError(f"found {kind!r} under `event`; expected the kind of the event, a text")
    if kind not in _KNOWN_EVENTS:
        return None
    parsed: Event = msgspec.convert(event, type=Event)
    return parsed


def read_events(path: Path) -> list[Event]:
    """Read `events.jsonl`, without lines that break off (`json_lines`).

    Raises:
        MissingRecord: there is no such file.
        MalformedRecord: a line is something else, with its number.
    """
    events = []
    for number, found in json_lines(path, "the events of the server"):
        try:
            event = parse_event(found)
        except ValueError as error:  # msgspec's errors are ValueErrors
            raise MalformedRecord(path, f"in line {number}: {error}", "one JSON event a line") from error
        if event is not None:
            events.append(event)
    return events
