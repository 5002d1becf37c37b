"""The parts of `docs/protocol.md` that the code says itself: messages, limits, sizes, state tables, rules.

Each lies in the document between `<!-- generated: NAME -->` and `<!-- end -->`. `secure-codream check --write-tables
docs/protocol.md` writes them anew; a test holds document and code together.

The state tables are not read off the source: real machines of both sides are driven, in both modes, through every state
that a small epoch can reach, each message is tried in each, and where the machine went is what the table says.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import date
from enum import Enum
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec
from msgspec import inspect

from codream_protocols import charter, client, identity, messages, record_file, specs, unmasking
from codream_protocols.charter import default_threshold
from codream_protocols.client import ClientProtocol, State
from codream_protocols.errors import LocalProtocolError, ProtocolError
from codream_protocols.hybrid import KEM_CIPHERTEXT_BYTES, KEM_KEY_BYTES
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.packing import packed_size
from codream_protocols.ring import modulus_bits_for
from codream_protocols.server import Phase, ServerProtocol
from codream_protocols.specs import DIGIT_BITS
from secure_codream.simulation.packets import Packet
from secure_codream.simulation.rings import small_rings
from secure_codream.simulation.wire import Federation

if TYPE_CHECKING:
    from secure_codream.threats.checker.check import Findings

Mode = Literal["lockstep", "resilient"]
Graph = Literal["lockstep", "resilient", "ring"]
MODES: tuple[Mode, ...] = ("lockstep", "resilient")
GRAPHS: tuple[Graph, ...] = (*MODES, "ring")
Table = dict[tuple[str, str], set[str]]  # (state, event) -> the states that it leads to
Machine = TypeVar("Machine", ClientProtocol, ServerProtocol)


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
    from secure_codream.threats.checker import check

    counts = sorted({row.members for row in findings.settings})
    made = f"`secure-codream check --members {counts[0]}-{counts[-1]}`, {date.today().isoformat()}."
    settings = markdown(check.SETTING_COLUMNS, map(check.setting_cells, findings.settings), right=range(6))
    return {
        "checked-settings": f"{made}\n\n{settings}",
        "checked-counts": markdown(check.COUNT_COLUMNS, map(check.count_cells, findings.counts), right=range(5)),
        "checked-courses": markdown(check.COURSE_COLUMNS, map(check.course_cells, findings.courses), right=(1, 2)),
        "checked-defences": markdown(
            check.DEFENCE_COLUMNS, [_code_names(check.defence_cells(row)) for row in findings.defences]
        ),
    }


def _code_names(cells: Sequence[str]) -> list[str]:
    return [re.sub(r"_rule_\w+", r"`\g<0>`", cell).replace("\n", ", ") for cell in cells]


def sections() -> dict[str, str]:
    """All sections but the checker's."""
    return {
        "messages": message_table(),
        "digested": digested_table(),
        "limits": limit_table(),
        "sizes": size_table(),
        "client-states": state_table(client_states(), [state.value for state in State]),
        "server-states": state_table(server_states(), [phase.value for phase in Phase]),
        "rules": rule_table(),
    }


# -- messages ---------------------------------------------


def message_types() -> list[type[msgspec.Struct]]:
    """Every message, in the order of the module that defines them."""
    kinds = {*messages.ToClient.__args__, *messages.ToServer.__args__}
    return [kind for kind in vars(messages).values() if isinstance(kind, type) and kind in kinds]


def message_table() -> str:
    """One row a message, then one for each structure inside them: tag, direction, fields in order."""
    rows = []
    kinds = message_types()
    for kind in kinds:
        ways = [
            way
            for way, union in (("to client", messages.ToClient), ("to server", messages.ToServer))
            if kind in union.__args__
        ]
        tag = f"`{kind.__struct_config__.tag}`"
        rows.append((f"`{kind.__name__}`", tag, " and ".join(ways) if len(ways) == 1 else "either way", _fields(kind)))
    inside = dict.fromkeys(struct for kind in kinds for struct in _structures(inspect.type_info(kind)))
    rows += [(f"`{kind.__name__}`", "", "inside", _fields(kind)) for kind in inside if kind not in kinds]
    return markdown(("message", "tag", "way", "fields, in order"), rows)


def digested_table() -> str:
    """One row for each structure whose canonical form a digest covers, with its fields in order."""
    kinds = dict.fromkeys(
        struct for kind in (charter.Plan, charter.Charter) for struct in _structures(inspect.type_info(kind))
    )
    return markdown(("structure", "fields, in order"), [(f"`{kind.__name__}`", _fields(kind)) for kind in kinds])


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
            return f"bytes{_extent(least, most)}"
        case inspect.StrType(min_length=least, max_length=most):
            return f"text{_extent(least, most)}"
        case inspect.IntType(ge=least, le=most, lt=below):
            return f"int{_extent(least, most if below is None else below - 1)}"
        case inspect.FloatType(ge=least, le=most):
            return f"float, {least:g} to {most:g}" if least is not None and most is not None else "float"
        case inspect.BoolType():
            return "bool"
        case inspect.LiteralType(values=values):
            return "text, " + " or ".join(f"`{value}`" for value in values)
        case inspect.VarTupleType(item_type=item, min_length=least, max_length=most):
            return f"array{_extent(least, most, ' of ')} ({_described(item)})"
        case inspect.StructType(cls=struct):
            return f"`{struct.__name__}`"
        case inspect.NoneType():
            return "nil"
        case inspect.UnionType(types=types):
            return " or ".join(map(_described, types))
    raise TypeError(f"found {kind}; a type that messages are made of is allowed")


def _extent(least: int | None, most: int | None, between: str = ", ") -> str:
    if most is None:
        return ""
    return f"{between}{most}" if least == most else f"{between}{least or 0} to {most}"


def limit_table() -> str:
    """The constants that bound what is accepted."""
    limits = (
        ("bytes of a message without its frames", messages.MAX_MESSAGE_BYTES),
        ("members of a roster that is signed", identity.MAX_SIGNED_MEMBERS),
        ("members in a simulation", identity.MAX_MEMBERS),
        ("of these in lockstep", charter.MAX_LOCKSTEP),
        ("bytes of a roster file", identity.MAX_ROSTER_BYTES),
        ("steps of an epoch", charter.MAX_STEPS),
        ("ring elements of a vector", specs.MAX_COORDINATES),
        ("a count", specs.MAX_COUNT),
        ("bytes of one seal's ciphertext", messages.MAX_SEAL_BYTES),
        ("epochs that a client's next one may be ahead", client.MOST_SKIPPED_EPOCHS),
        ("choices of tau answers that the server tries, all or none", unmasking.MAX_CHOICES),
        ("bytes of an epoch's packed sums", charter.MAX_SUMS_BYTES),
        ("bytes of a record's file", record_file.MAX_RECORD_BYTES),
        ("blocks of a charter's predecessors", charter.MAX_BLOCKS),
    )
    rows = [(what, f"{most:,}") for what, most in limits]
    return markdown(("at most", ""), [*rows, ("smallest clip", f"{specs.LEAST_CLIP:g}")], right=(1,))


# -- sizes ---------------------------------------------

Formula = Callable[..., int]


def _advertisement(T: int, resilient: bool) -> int:
    return KEM_KEY_BYTES + 6 * KEY_BYTES + (2 * KEY_BYTES * T if resilient else 0)


def _seal(T: int, resilient: bool) -> int:
    return KEM_CIPHERTEXT_BYTES + KEY_BYTES + 80 + (2 * KEY_BYTES * T if resilient else 0)


# Message -> its keys, signatures and vectors in bytes: in words, and as a function of (n, tau, q, T, P, resilient), P
# being the bytes of a packed vector. What stands in brackets is the resilient mode's.
SIZES: dict[type, tuple[str, Formula]] = {
    messages.Invitation: ("32 + n", lambda n, tau, q, T, P, r: 32 + n),
    messages.Advertisement: ("1,376 [+ 64 T]", lambda n, tau, q, T, P, r: _advertisement(T, r)),
    messages.Advertisements: ("n (1,376 [+ 64 T]) + 32", lambda n, tau, q, T, P, r: n * _advertisement(T, r) + 32),
    messages.Seals: ("(n - 1)(1,200 [+ 64 T]) + 32", lambda n, tau, q, T, P, r: (n - 1) * _seal(T, r) + 32),
    messages.SealDelivery: ("(n - 1)(1,200 [+ 64 T]) + 32", lambda n, tau, q, T, P, r: (n - 1) * _seal(T, r) + 32),
    messages.MaskedInput: ("P + 80; in the first step + 32 n", lambda n, tau, q, T, P, r: P + 80),
    messages.Survivors: ("[n' + 32]", lambda n, tau, q, T, P, r: n + 32),
    messages.SurvivorSignature: ("[96]", lambda n, tau, q, T, P, r: 96),
    messages.SurvivorSignatures: ("[64 tau + 32]", lambda n, tau, q, T, P, r: 64 * tau + 32),
    messages.UnmaskShares: ("[32 n + 32]", lambda n, tau, q, T, P, r: 32 * n + 32),
    messages.Published: ("P + n' + 48", lambda n, tau, q, T, P, r: P + n + 48),
    messages.Vote: ("128", lambda n, tau, q, T, P, r: 128),
    messages.Certificate: ("64 q + 32", lambda n, tau, q, T, P, r: 64 * q + 32),
    messages.EpochRecord: (
        "n (1,408 [+ 64 T]) + T (P + n' + 16) + 64 q + 32",
        lambda n, tau, q, T, P, r: n * (_advertisement(T, r) + 32) + T * (P + n + 16) + 64 * q + 32,
    ),
}
ONE_WAY = (
    messages.Survivors,
    messages.SurvivorSignature,
    messages.SurvivorSignatures,
    messages.UnmaskShares,
)  # of the resilient mode alone


def modulus_bits(members: int, value_bits: int = 16) -> int:
    """M of a course with reals, counts and no noise."""
    return modulus_bits_for(max(value_bits, DIGIT_BITS), members)


def quorum(members: int, mode: Mode, colluders: int = 1) -> int:
    """How many votes certify."""
    return members if mode == "lockstep" else (members + colluders) // 2 + 1


def sample_sizes(mode: Mode, members: int, steps: int, coordinates: int) -> dict[type, int]:
    """Bytes of each message with its frames, by encoding one; steps after the first, and everybody survives."""
    resilient, everybody, last = mode == "resilient", tuple(range(members)), steps - 1
    plan, signature, key = bytes(32), bytes(64), bytes(KEY_BYTES)
    rows = bytes(steps * KEY_BYTES if resilient else 0)
    packed = packed_size(coordinates, modulus_bits(members))
    offer = charter.Offer(1, everybody, key)
    advertisement = messages.Advertisement(
        plan, members - 1, key, bytes(KEM_KEY_BYTES), key, key, rows, rows, signature
    )
    seal = messages.Seal(members - 1, bytes(KEM_CIPHERTEXT_BYTES), bytes(KEY_BYTES + 2 * len(rows) + 16), signature)
    votes = tuple(messages.SignedBy(member, signature) for member in everybody[: quorum(members, mode)])
    signed = tuple(messages.SignedBy(member, signature) for member in everybody[: default_threshold(members, 1)])
    sums = (messages.StepRecord(everybody, bytes(16)),) * steps
    samples: tuple[tuple[messages.ToClient | messages.ToServer, int], ...] = (
        (messages.Invitation(offer), 0),
        (advertisement, 0),
        (messages.Advertisements(plan, (advertisement,) * members), 0),
        (messages.Seals(plan, (seal,) * (members - 1)), 0),
        (messages.SealDelivery(plan, (seal,) * (members - 1)), 0),
        (messages.MaskedInput(plan, last, key, bytes(16), b""), packed),
        (messages.Survivors(plan, last, everybody), 0),
        (messages.SurvivorSignature(plan, last, signature), 0),
        (messages.SurvivorSignatures(plan, last, signed), 0),
        (messages.UnmaskShares(plan, last, bytes(KEY_BYTES * members)), 0),
        (messages.Published(plan, last, everybody, bytes(16)), packed),
        (messages.Vote(plan, key, signature), 0),
        (messages.Certificate(plan, votes), 0),
        (
            messages.EpochRecord(offer, (advertisement,) * members, bytes(KEY_BYTES * members), sums, votes),
            steps * packed,
        ),
    )
    sizes = {type(message): len(messages.encode_message(message)) + frames for message, frames in samples}
    return {kind: size for kind, size in sizes.items() if resilient or kind not in ONE_WAY}


def size_table(members: int = 12, steps: int = 12, coordinates: int = 100_000) -> str:
    """The size of each message in both modes, and what a client sends in an epoch."""
    sizes = {mode: sample_sizes(mode, members, steps, coordinates) for mode in MODES}
    rows = [
        (f"`{kind.__name__}`", words, *(f"{sizes[mode][kind]:,}" if kind in sizes[mode] else "" for mode in MODES))
        for kind, (words, _) in SIZES.items()
    ]
    header = ("message", "keys, signatures and vectors, bytes", *MODES)
    packed = packed_size(coordinates, modulus_bits(members))
    lines = []
    for mode in MODES:
        found = sizes[mode]
        once = found[messages.Advertisement] + found[messages.Seals] + KEY_BYTES * members + found[messages.Vote]
        a_step = found[messages.MaskedInput] + found.get(messages.UnmaskShares, 0)
        total = once + steps * a_step
        lines.append(
            f"- {mode}: {once:,} bytes once an epoch and {a_step:,} a step, {total:,} in all: "
            f"{total / (steps * packed):.4f} times its packed vectors."
        )
    return (
        f"n = {members}, T = {steps}, D = {coordinates:,}:\n\n{markdown(header, rows, right=(2, 3))}\n\n"
        "What a client sends, if nobody drops:\n" + "\n".join(lines)
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


def merged(tables: Iterable[Table]) -> Table:
    """What any of the tables says."""
    whole: Table = {}
    for table in tables:
        for event, states in table.items():
            whole.setdefault(event, set()).update(states)
    return whole


def small(graph: Graph) -> Federation:
    """A federation of as few members as its graph shows itself with."""
    mode: Mode = "lockstep" if graph == "lockstep" else "resilient"
    return Federation(4 if graph == "resilient" else 3, mode=mode, steps=2, losses="allow")


def laboratory(graph: Graph, *, lost: bool) -> Federation:
    """A whole epoch of a small federation; with `lost`, the last member's vector of the first step never arrives.

    Two runs of one graph have the same keys and the same plan, so a machine of one takes the messages of the other.
    """
    federation = small(graph)
    federation.set_up()
    federation.step({(len(federation.clients) - 1, messages.MaskedInput)} if lost else ())
    while federation.server.step is not None:
        federation.step()
    federation.finish()
    return federation


@cache
def client_states() -> Table:
    """The client's state table, of both modes together, the resilient one on a ring, too."""
    return merged(_explored(_client_states))


def _explored(states: Callable[[Graph], Table]) -> Iterator[Table]:
    for graph in GRAPHS:
        with small_rings(2, 1) if graph == "ring" else nullcontext():
            yield states(graph)


def _client_states(graph: Graph) -> Table:
    runs = [laboratory(graph, lost=lost) for lost in ((False, True) if graph == "resilient" else (False,))]
    told: dict[Packet, None] = {}
    for federation in runs:
        (certified,) = federation.certified
        record, frames = certified.kept
        one = msgspec.structs.replace(record, votes=record.votes[1:2])
        told.update(dict.fromkeys(item for item in federation.sent if not item.to_server and item.member == 0))
        for shown in (record, one):
            told[Packet(0, False, messages.EpochRecord, messages.encode_message(shown), frames)] = None
    federation = runs[0]
    plan, offer = federation.plan.digest, federation.plan.offer
    more: tuple[messages.ToClient, ...] = (
        messages.Invitation(msgspec.structs.replace(offer, epoch=1)),
        messages.GivenUp(plan, "over"),
        messages.Refusal("policy", "", ""),
        messages.Welcome(federation.plan.protocol, 1.0, offer.head),
        messages.Farewell("over", True),
    )
    told.update(dict.fromkeys(Packet(0, False, type(message), messages.encode_message(message)) for message in more))
    moves: list[Move[ClientProtocol]] = [
        (item.kind.__name__, lambda client, item=item: client.receive(item.message, item.frames))  # type: ignore[misc]
        for item in told
    ]
    moves += [
        ("own vector", lambda client, step=step: client.provide(plan, step, None))  # type: ignore[misc]
        for step in range(federation.plan.steps)
    ]

    def mark(client: ClientProtocol) -> Hashable:
        epoch = client._epoch
        step = epoch.step if epoch else None
        return (
            client.state,
            client.head,
            epoch and epoch.plan.digest,
            epoch and epoch.public and tuple(epoch.public.links),
            step and (step.number, step.survivors),
            client._vote and client._vote[0].chain,
        )

    start = small(graph).clients[0]
    return reachable(start, moves, lambda client: client.state, mark)


@cache
def server_states() -> Table:
    """The server's state table, of both modes together, the resilient one on a ring, too."""
    return merged(_explored(_server_states))


def _server_states(graph: Graph) -> Table:
    federation = laboratory(graph, lost=False)
    sent = dict.fromkeys(item for item in federation.sent if item.to_server)
    if graph == "resilient":
        other = laboratory(graph, lost=True)
        sent.update(dict.fromkeys(item for item in other.sent if item.to_server and item.kind is not messages.Seals))
    last, plan, (certified,) = len(federation.clients) - 1, federation.plan.digest, federation.certified
    record, frames = certified.kept
    own = msgspec.structs.replace(record, votes=record.votes[-1:])
    moves: list[Move[ServerProtocol]] = [
        (item.kind.__name__, lambda server, item=item: server.receive(item.member, item.message, item.frames))  # type: ignore[misc]
        for item in sent
    ]
    giver = record.votes[-1].member
    hello = small(graph).clients[0].hello()
    moves += [
        ("Hello", lambda server: server.hello(last, hello)),
        ("Hello", lambda server: server.hello(last, msgspec.structs.replace(hello, plan=plan))),
        ("Refusal", lambda server: server.receive(last, messages.Refusal("policy", "", "", plan))),
        ("Refusal", lambda server: server.receive(last, messages.Refusal("policy", "", ""))),
        ("Complaint", lambda server: server.receive(last, messages.Complaint(plan, 0))),
        ("EpochRecord", lambda server: server.receive(giver, own, frames)),
        ("EpochRecord", lambda server: server.receive(0, record, frames)),
        ("an epoch may begin", _open),
        ("a member is lost", lambda server: server.lost(last)),
        ("patience is over", lambda server: server.expire()),
    ]

    def mark(server: ServerProtocol) -> Hashable:
        epoch, step = server._epoch, server._epoch.step if server._epoch else None
        return (
            server.phase,
            server.head,
            server._next_epoch,
            len(server._candidates),
            last in server.absent,
            epoch and (len(epoch.advertised), len(epoch.sealed), len(epoch.votes), len(epoch.gone), last in epoch.gone),
            epoch and (len(epoch.heard), len(epoch.starts)),
            epoch and epoch.public and epoch.public.chain,
            step and (len(step.inputs), last in step.inputs, step.survivors, len(step.signatures), len(step.answers)),
        )

    start = ServerProtocol(federation.charter, federation.roster, federation.course)
    for member in federation.everybody:
        start.hello(member, hello)
    return reachable(start, moves, lambda server: server.phase, mark)


def _open(server: ServerProtocol) -> None:
    """Open the epoch whose messages are at hand, and no other."""
    if server._next_epoch:
        raise LocalProtocolError("a second epoch", "one, whose messages are known")
    server.open_epoch(server.charter.everybody)


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
