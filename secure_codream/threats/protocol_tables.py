"""The parts of `docs/protocol.md` that the code says itself: messages, limits, sizes, state tables, rules.

Each lies in the document between `<!-- generated: NAME -->` and `<!-- end -->`. `secure-codream check --write-tables
docs/protocol.md` writes them anew; a test holds document and code together.

The state tables are not read off the source: real machines of both sides are driven through every state that a small
epoch can reach, each message is tried in each, and where the machine went is what the table says.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from enum import Enum
from inspect import cleandoc
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec import inspect

from codream_protocols import identity, messages, plan
from codream_protocols.client import MAX_SESSIONS, ClientProtocol, State
from codream_protocols.errors import ProtocolError
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.masks import word_type
from codream_protocols.messages import (
    Advertisement,
    Advertisements,
    Broadcast,
    Farewell,
    MaskedInput,
    PlanOffer,
    Refusal,
    SealedShare,
    ShareDelivery,
    Shares,
    SignedBy,
    Survivors,
    SurvivorSignature,
    SurvivorSignatures,
    ToClient,
    ToServer,
    UnmaskShares,
    encode_message,
    survivor_statement,
)
from codream_protocols.packing import packed_size
from codream_protocols.plan import default_threshold
from codream_protocols.ring import modulus_bits_for
from codream_protocols.server import MAX_SHARE_SUBSETS, Phase, ServerEpoch
from codream_protocols.tasks import update_spec
from secure_codream.threats.check import DEFENCE_COLUMNS, SETTING_COLUMNS, Findings, defence_cells, setting_cells
from secure_codream.threats.federation import STATE, Federation, Packet, make_plan

Table = dict[tuple[str, str], set[str]]  # (state, event) -> the states that it leads to
Machine = TypeVar("Machine", ClientProtocol, ServerEpoch)


def write_sections(text: str, sections: Mapping[str, str]) -> str:
    """The document with these generated sections in place of those between the markers.

    Raises:
        ValueError: a section has no place in the document.
    """
    for name, content in sections.items():
        pattern = re.compile(rf"(<!-- generated: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = pattern.subn(lambda found, new=content: f"{found[1]}\n{new}\n\n{found[2]}", text)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"found {count} places for the section {name!r}; one is allowed, between its markers")
    return text


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """A table in Markdown; columns of numbers, by place, are set to the right."""
    rules = ["---:" if place in right else "---" for place in range(len(columns))]
    lines = [columns, rules, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def write_document(path: Path, findings: Findings) -> None:
    """Write all generated parts of the document anew.

    Raises:
        ValueError: a part has no place in it.
    """
    text = write_sections(path.read_text(encoding="utf-8"), {**sections(), **checker_sections(findings)})
    path.write_text(text, encoding="utf-8")


def checker_sections(findings: Findings) -> dict[str, str]:
    """The model checker's tables."""
    counts = sorted({row.members for row in findings.settings})
    made = f"`secure-codream check --members {counts[0]}-{counts[-1]}`, {date.today().isoformat()}."
    settings = markdown(SETTING_COLUMNS, map(setting_cells, findings.settings), right=range(6))
    defences = markdown(DEFENCE_COLUMNS, [_code_names(defence_cells(row)) for row in findings.defences])
    return {"checked-settings": f"{made}\n\n{settings}", "checked-defences": defences}


def _code_names(cells: Sequence[str]) -> list[str]:
    return [re.sub(r"_rule_\w+", r"`\g<0>`", cell).replace("\n", ", ") for cell in cells]


def sections() -> dict[str, str]:
    """All sections but the checker's."""
    return {
        "messages": message_table(),
        "limits": limit_table(),
        "sizes": size_table(),
        "client-states": state_table(client_states(), [state.value for state in State]),
        "server-states": state_table(server_states(), [phase.value for phase in Phase]),
        "rules": rule_table(),
    }


# -- messages ---------------------------------------------


def message_types() -> list[type[msgspec.Struct]]:
    """Every message, in the order of the module that defines them."""
    kinds = {*ToClient.__args__, *ToServer.__args__}
    return [kind for kind in vars(messages).values() if isinstance(kind, type) and kind in kinds]


def message_table() -> str:
    """One row a message, then one for each structure inside them: tag, direction, fields in order."""
    rows = []
    kinds = message_types()
    for kind in kinds:
        ways = [way for way, union in (("to client", ToClient), ("to server", ToServer)) if kind in union.__args__]
        tag = f"`{kind.__struct_config__.tag}`"
        rows.append((f"`{kind.__name__}`", tag, " and ".join(ways) if len(ways) == 1 else "either way", _fields(kind)))
    inside = dict.fromkeys(struct for kind in kinds for struct in _structures(inspect.type_info(kind)))
    rows += [(f"`{kind.__name__}`", "", "inside", _fields(kind)) for kind in inside if kind not in kinds]
    return markdown(("message", "tag", "way", "fields, in order"), rows)


def _fields(kind: type[msgspec.Struct]) -> str:
    info = inspect.type_info(kind)
    fields = info.fields if isinstance(info, inspect.StructType) else ()
    return "; ".join(f"`{field.name}` {_described(field.type)}" for field in fields) or "none"


def _structures(kind: inspect.Type) -> Iterator[type[msgspec.Struct]]:
    """The structures inside a type, itself included, outermost first."""
    match kind:
        case inspect.StructType(cls=struct, fields=fields):
            yield struct
            for field in fields:
                yield from _structures(field.type)
        case inspect.VarTupleType(item_type=item):
            yield from _structures(item)
        case inspect.UnionType(types=types):
            for item in types:
                yield from _structures(item)


def _described(kind: inspect.Type) -> str:
    match kind:
        case inspect.BytesType(min_length=least, max_length=most):
            return f"bytes, {_extent(least, most)}"
        case inspect.StrType(min_length=least, max_length=most):
            return f"text, {_extent(least, most)}"
        case inspect.IntType(ge=least, le=most, lt=below):
            return f"int, {least} to {most if most is not None else (below or 0) - 1}"
        case inspect.FloatType(gt=above, le=most):
            return "float" if most is None else f"float, above {above:g}, at most {most:g}"
        case inspect.BoolType():
            return "bool"
        case inspect.VarTupleType(item_type=item, min_length=least, max_length=most):
            return f"array of {_extent(least, most)} ({_described(item)})"
        case inspect.StructType(cls=struct):
            return f"`{struct.__name__}`"
        case inspect.NoneType():
            return "nil"
        case inspect.UnionType(types=types):
            return " or ".join(map(_described, types))
    raise TypeError(f"found {kind}; a type that messages are made of is allowed")


def _extent(least: int | None, most: int | None) -> str:
    return str(most) if least == most else f"{least or 0} to {most}"


def limit_table() -> str:
    """The constants that bound what is accepted."""
    limits = (
        ("bytes of a message without its frames", messages.MAX_MESSAGE_BYTES),
        ("members of a roster", identity.MAX_MEMBERS),
        ("bytes of a roster file", identity.MAX_ROSTER_BYTES),
        ("steps of an epoch", plan.MAX_STEPS),
        ("coordinates of a vector", plan.MAX_COORDINATES),
        ("bytes of one ciphertext with shares", messages.MAX_SHARE_BYTES),
        ("sessions that a running client remembers", MAX_SESSIONS),
        ("sets of answers that the server tries after the decoded one", MAX_SHARE_SUBSETS),
    )
    rows = [(what, f"{most:,}") for what, most in limits]
    return markdown(("at most", ""), [*rows, ("smallest clip", f"{plan.LEAST_CLIP:g}")], right=(1,))


# -- sizes ---------------------------------------------

SIZES = {  # message -> its keys, shares and vectors in bytes, in words and as a function of (n, tau, T, m, D)
    PlanOffer: ("grows by 1 a step and 1 to 2 a member", lambda n, tau, T, m, D: T + n),
    Advertisement: ("64 T + 128", lambda n, tau, T, m, D: 64 * T + 128),
    Advertisements: ("n (64 T + 128) + 32", lambda n, tau, T, m, D: n * (64 * T + 128) + 32),
    Shares: ("(n - 1)(64 T + 16) + 32", lambda n, tau, T, m, D: (n - 1) * (64 * T + 16) + 32),
    ShareDelivery: ("(n - 1)(64 T + 16) + n + 32", lambda n, tau, T, m, D: (n - 1) * (64 * T + 16) + n + 32),
    Broadcast: ("4 D + 32", lambda n, tau, T, m, D: 4 * D + 32),
    MaskedInput: ("ceil(m (D + 3) / 8) + 64", lambda n, tau, T, m, D: packed_size(D + 3, m) + 64),
    Survivors: ("n' + 32", lambda n, tau, T, m, D: n + 32),
    SurvivorSignature: ("96", lambda n, tau, T, m, D: 96),
    SurvivorSignatures: ("64 tau + 32", lambda n, tau, T, m, D: 64 * tau + 32),
    UnmaskShares: ("32 n + 32", lambda n, tau, T, m, D: 32 * n + 32),
}


def sample_sizes(members: int, steps: int, coordinates: int, *, value_bits: int = 16) -> dict[type, int]:
    """Bytes of each message with its frames, by encoding one: a plan of `steps` dream updates of `coordinates`."""
    spec = update_spec(coordinates, 10, 1.0)
    federation = Federation(members, steps=1)
    threshold, modulus = default_threshold(members, 1), modulus_bits_for(value_bits, members)
    offered = make_plan(
        federation.roster, threshold=threshold, colluders=1, specs=(spec,), steps=steps, modulus_bits=modulus
    )
    digest, everyone, last = offered.digest, tuple(range(members)), steps - 1
    signature, secrets = bytes(64), bytes(steps * KEY_BYTES)
    advertisement = Advertisement(digest, members - 1, bytes(KEY_BYTES), secrets, secrets, signature)
    sealed = tuple(SealedShare(member, bytes(2 * len(secrets) + 16)) for member in everyone[1:])
    signed = tuple(SignedBy(member, signature) for member in everyone[:threshold])
    vectors = {Broadcast: 4 * coordinates, MaskedInput: packed_size(spec.length, modulus)}
    samples: tuple[ToClient | ToServer, ...] = (
        PlanOffer(offered),
        advertisement,
        Advertisements(digest, (advertisement,) * members),
        Shares(digest, sealed),
        ShareDelivery(digest, everyone, sealed),
        Broadcast(digest, last, tuple(block.clip for block in spec.blocks), ((coordinates,),)),
        MaskedInput(digest, last, digest),
        Survivors(digest, last, everyone),
        SurvivorSignature(digest, last, signature),
        SurvivorSignatures(digest, last, signed),
        UnmaskShares(digest, last, bytes(KEY_BYTES * members)),
    )
    return {type(sample): len(encode_message(sample)) + vectors.get(type(sample), 0) for sample in samples}


def size_table(members: int = 10, steps: int = 12, coordinates: int = 100_000) -> str:
    """The size of each message, and what a client sends in an epoch."""
    sizes = sample_sizes(members, steps, coordinates)
    rows = [(f"`{kind.__name__}`", words, f"{sizes[kind]:,}") for kind, (words, _) in SIZES.items()]
    header = ("message", "keys, shares and vectors, bytes", f"n = {members}, T = {steps}, D = {coordinates:,}")
    once = sizes[Advertisement] + sizes[Shares]
    a_step = sizes[MaskedInput] + sizes[UnmaskShares]
    payload = packed_size(coordinates + 3, modulus_bits_for(16, members))
    total = once + steps * a_step
    return (
        f"{markdown(header, rows, right=(2,))}\n\n"
        f"A client sends {once:,} bytes once an epoch and {a_step:,} a step in which nobody drops, {total:,} in all:\n"
        f"{total / (steps * payload):.4f} times its packed vectors."
    )


# -- state tables ---------------------------------------------

Move = tuple[str, Callable[[Machine], object]]


def reachable(
    start: Machine,
    moves: Sequence[Move[Machine]],
    where: Callable[[Machine], Enum],
    mark: Callable[[Machine], Hashable],
) -> Table:
    """Every (state, event) -> states that copies of a machine show when each move is tried in each reachable state.

    Args:
        start: the machine to begin with; it is not changed.
        moves: (name of the event, what to do to the machine); a refusal is no transition.
        where: its state.
        mark: what tells two situations apart.
    """
    table: Table = {}
    seen, waiting = {mark(start)}, [start]
    while waiting:
        machine = waiting.pop()
        for event, act in moves:
            twin = copy.deepcopy(machine)
            try:
                act(twin)
            except ProtocolError:
                continue
            table.setdefault((str(where(machine).value), event), set()).add(str(where(twin).value))
            if mark(twin) not in seen:
                seen.add(mark(twin))
                waiting.append(twin)
    return table


def client_states() -> Table:
    """The client's state table, of a member among three."""
    federation = Federation(3, steps=2, threshold=2, least_survivors=2)
    machine = copy.deepcopy(federation.clients[0])
    federation.masked()
    digest, everyone, fewer = federation.plan.digest, (0, 1, 2), (0, 1)
    statement = survivor_statement(federation.server._transcript(), 0, fewer)
    signed = SurvivorSignatures(digest, 0, (SignedBy(1, federation.signers[1].sign("survivors", *statement)),))
    following = msgspec.structs.replace(federation.plan, epoch=1)
    told = [(item.message, item.frames) for item in federation.sent if not item.to_server and item.member == 0]
    (first,) = [(message, frames) for message, frames in told if isinstance(message, Broadcast)]
    second = (msgspec.structs.replace(first[0], step=1), first[1])
    more: list[Any] = [Survivors(digest, 0, fewer), signed, PlanOffer(following), Farewell(b"", "over")]
    moves: list[Move[ClientProtocol]] = [
        (type(message).__name__, lambda client, message=message, frames=frames: client.receive(message, frames))  # type: ignore[misc]
        for message, frames in [*told, second, *((message, ()) for message in more)]
    ]
    assert Survivors(digest, 0, everyone) in [message for message, _ in told]  # noqa: S101 - both paths are tried
    vector = np.zeros(federation.plan.spec(0).length, dtype=word_type(federation.plan.modulus_bits))
    moves.append(("own vector", lambda client: client.provide(0, vector)))

    def mark(client: ClientProtocol) -> Hashable:
        epoch = client._epoch
        step = epoch.step if epoch else None
        return client.state, epoch and epoch.digest, step and (step.number, step.survivors)

    return reachable(machine, moves, lambda client: client.state, mark)


def server_states() -> Table:
    """The server's state table, of an epoch with three members."""
    table: Table = {}
    for steps in (1, 2):  # the end of an epoch, and a step that is not the last
        for event, states in _server_states(steps).items():
            table.setdefault(event, set()).update(states)
    return table


def _server_states(steps: int) -> Table:
    packets: dict[Packet, None] = {}
    for lost in ((), ((2, MaskedInput),)):
        federation = Federation(3, steps=steps, threshold=2, least_survivors=2)
        federation.set_up()
        federation.step(lost)
        packets.update(dict.fromkeys(item for item in federation.sent if item.to_server))
    moves: list[Move[ServerEpoch]] = [
        (
            item.kind.__name__,
            lambda server, item=item: server.receive(item.member, item.message, item.frames),  # type: ignore[misc]
        )
        for item in packets
    ]
    clips = [block.clip for block in federation.plan.spec(0).blocks]
    moves += [
        ("Refusal", lambda server: server.receive(2, Refusal("policy", "", ""))),
        ("start", lambda server: server.start()),
        ("next step", lambda server: server.begin_step(clips, [STATE])),
        ("patience over", lambda server: server.expire()),
    ]

    def mark(server: ServerEpoch) -> Hashable:
        step = server._step
        return (
            server.phase,
            frozenset(server._advertised),
            frozenset(server._sealed),
            frozenset(server.absent),
            server._next_step,
            step and (frozenset(step.inputs), frozenset(step.signatures), tuple(sorted(step.answers.items()))),
        )

    return reachable(ServerEpoch(federation.plan, federation.roster), moves, lambda server: server.phase, mark)


def state_table(table: Table, states: Sequence[str]) -> str:
    """Events down, states across; a cell says where the event leads, a dot that nothing changes."""
    events = dict.fromkeys(event for _, event in table)
    rows = []
    for event in events:
        cells = []
        for state in states:
            found = table.get((state, event), set())
            cells.append(", ".join(["·"] * (state in found) + [other for other in states if other in found - {state}]))
        rows.append((f"`{event}`" if event[0].isupper() else event, *cells))
    return markdown(("", *states), rows)


# -- rules ---------------------------------------------


def rules() -> dict[str, str]:
    """Each rule of the client and what it says of itself."""
    return {
        name: " ".join(cleandoc(function.__doc__ or "").split())
        for name, function in vars(ClientProtocol).items()
        if name.startswith("_rule_")
    }


def rule_table() -> str:
    """One row a rule."""
    return markdown(("rule", "what it says"), [(f"`{name}`", text) for name, text in rules().items()])
