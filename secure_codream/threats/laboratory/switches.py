"""Defences that can be switched off, one at a time and by name, so that a control can show what each is there for.

A rule of the client is a method `_rule_...` of `ClientProtocol`: a subclass takes it out (`weakened`). Every other
defence has a switch here: a context in which that one defence is gone and all else stays as deployed. Some attacks
vary their own set-up instead; their switches patch nothing and the attack asks `Defences.stands`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import msgpack
import numpy as np

from codream_protocols import chain as links
from codream_protocols import charter as charter_module
from codream_protocols import client as client_module
from codream_protocols import hybrid, identity, keyschedule, lockstep, messages, shamir, unmasking
from codream_protocols import record as record_module
from codream_protocols import server as server_module
from codream_protocols.charter import Charter
from codream_protocols.client import ClientProtocol
from codream_protocols.errors import CohortRefused
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.lockstep import LockstepKeys
from codream_protocols.masks import word_type
from codream_protocols.messages import SealDelivery, UnmaskShares
from codream_protocols.packing import Packed, pack, packed_size
from codream_protocols.resilient import ResilientKeys
from codream_protocols.secret import Secret, SecretArray
from codream_protocols.server import ServerProtocol
from secure_codream.configuration.reading import ConfigError
from secure_codream.threats.laboratory.defences import Defences


@dataclass(frozen=True)
class Switch:
    """A defence that is no rule: what it does, in a few words, and a context without it."""

    what: str
    off: Callable[[], AbstractContextManager[Any]] = nullcontext


RULES = {
    name: (rule.__doc__ or "").splitlines()[0]
    for name, rule in vars(ClientProtocol).items()
    if name.startswith("_rule_")
}


def weakened(defences: Defences) -> type[ClientProtocol]:
    """A client without the rules that are off."""
    off = sorted(defences.off & set(RULES))
    if not off:
        return ClientProtocol
    methods = {rule: lambda self, *arguments: None for rule in off}
    return type("Without" + "And".join(off), (ClientProtocol,), methods)


def without(*rules: str) -> type[ClientProtocol]:
    """A client with these rules taken out.

    Raises:
        ConfigError: there is no such rule.
    """
    for rule in set(rules) - set(RULES):
        raise ConfigError(f"defence {rule!r}: found no such rule; allowed: {', '.join(sorted(RULES))}")
    return weakened(Defences(frozenset(rules)))


@contextmanager
def switched_off(defences: Defences, more: Mapping[str, Switch] | None = None) -> Iterator[None]:
    """Take the defences that are off out of the code, but for rules, which `weakened` takes out.

    Args:
        defences: which.
        more: switches beside those of this file.

    Raises:
        ConfigError: a name that is neither a rule nor a switch.
    """
    with ExitStack() as stack:
        for name in sorted(defences.off - set(RULES)):
            stack.enter_context(_switch(name, more or {}).off())
        yield


def describe(name: str, more: Mapping[str, Switch] | None = None) -> str:
    """What a defence does, in a few words.

    Raises:
        ConfigError: a name that is neither a rule nor a switch.
    """
    return RULES[name] if name in RULES else _switch(name, more or {}).what


def _switch(name: str, more: Mapping[str, Switch]) -> Switch:
    known = {**SWITCHES, **more}
    if name not in known:
        raise ConfigError(
            f"defence {name!r}: found neither a rule nor a switch; allowed: {', '.join([*RULES, *known])}"
        )
    return known[name]


# -- keys and masks ---------------------------------------------


def _known_self_masks() -> AbstractContextManager[Any]:
    return patch.object(keyschedule, "self_mask_key", lambda *arguments: bytes(32))


@contextmanager
def _transcript_forgotten() -> Iterator[None]:
    """Keys that do not depend on whose advertisements a client was shown."""

    def transcript(plan: bytes, advertisements: list[bytes]) -> bytes:
        return keyschedule.digest("transcript", plan)

    with patch.object(links, "transcript", transcript):
        yield


@contextmanager
def _chain_forgotten() -> Iterator[None]:
    """Mask keys that do not depend on the state and the history at which a client masks."""
    pairwise, own, pair = keyschedule.pairwise_mask_key, keyschedule.self_mask_key, hybrid.pair_mask_key

    def pairwise_mask_key(private: keyschedule.Private, peer: bytes, **context: Any) -> bytes:
        return pairwise(private, peer, **{**context, "broadcast": b""})

    def self_mask_key(secret: bytes, plan: bytes, step: int, chain: bytes) -> bytes:
        return own(secret, plan, step, b"")

    def pair_mask_key(root: bytes, step: int, chain: bytes) -> bytes:
        return pair(root, step, b"")

    with (
        patch.multiple(keyschedule, pairwise_mask_key=pairwise_mask_key, self_mask_key=self_mask_key),
        patch.object(hybrid, "pair_mask_key", pair_mask_key),
    ):
        yield


@contextmanager
def _no_masks() -> Iterator[None]:
    def add_masks(*arguments: Any, **options: Any) -> None:
        return None

    with patch.object(client_module, "add_masks", add_masks), patch.object(unmasking, "add_masks", add_masks):
        yield


@contextmanager
def _masked_as_often_as_asked() -> Iterator[None]:
    """A repeated question is computed and masked again, with the same keys."""
    repeated = ClientProtocol._on_seal_delivery

    def begin_anew(self: ClientProtocol, message: SealDelivery, frames: Any) -> Any:
        epoch = self._epoch
        delivered = client_module._digest_of(message)
        if epoch is None or epoch.step is None or epoch.public is None or delivered != epoch.delivered:
            return repeated(self, message, frames)
        self.state = client_module.State.COMPUTING
        number = epoch.public.step
        task = self._course.task(epoch.public.state, number)
        return [client_module.Compute(epoch.plan.digest, number, epoch.plan.spec(number), task)]

    def keep(self: Any, step: int) -> None:
        return None

    def keep_the_seed(self: ResilientKeys) -> None:
        return None

    handlers = {key: begin_anew for key, handler in client_module.TRANSITIONS.items() if handler is repeated}
    with (
        patch.object(LockstepKeys, "pass_over", keep),
        patch.object(ResilientKeys, "pass_over", keep),
        patch.object(ResilientKeys, "_ratchet", keep_the_seed),
        patch.dict(client_module.TRANSITIONS, handlers),
    ):
        yield


def _any_key_will_do() -> AbstractContextManager[Any]:
    agree = keyschedule.agree

    def lenient(private: keyschedule.Private, peer: bytes) -> bytes:
        try:
            return agree(private, peer)
        except CohortRefused:
            return bytes(32)  # what X25519 without the check makes of a point of low order

    return patch.object(keyschedule, "agree", lenient)


class _NoAuthentication:
    """A cipher that opens whatever it is given."""

    def __init__(self, key: bytes) -> None:
        pass

    def encrypt(self, nonce: bytes, data: bytes, additional: bytes) -> bytes:
        return data + bytes(16)

    def decrypt(self, nonce: bytes, data: bytes, additional: bytes) -> bytes:
        return data[:-16]


def _any_value() -> AbstractContextManager[Any]:
    """Commitments that say nothing of what was committed to."""

    def commit(plan: bytes, member: int, value: bytes) -> bytes:
        return keyschedule.digest("value", plan, keyschedule.number(member))

    def commit_start(plan: bytes, member: int, share: bytes) -> bytes:
        return keyschedule.digest("start share", plan, keyschedule.number(member))

    return patch.multiple(hybrid, commit=commit, commit_start=commit_start)


# -- what is checked before it is believed ---------------------------------------------


@contextmanager
def _everywhere(name: str, replacement: Any) -> Iterator[None]:
    """Replace a function of the client's module where both machines use it."""
    with patch.object(client_module, name, replacement), patch.object(server_module, name, replacement):
        yield


@contextmanager
def _unchecked_charters() -> Iterator[None]:
    with (
        _everywhere("check_charter", lambda charter: None),
        patch.object(charter_module, "check_charter", lambda charter: None),
    ):
        yield


def _any_set() -> AbstractContextManager[Any]:
    return patch.object(Charter, "check_summed", lambda self, members: None)


def _any_charter_says_hello() -> AbstractContextManager[Any]:
    hello = ServerProtocol.hello

    def believe(self: ServerProtocol, member: int, message: Any) -> Any:
        return hello(self, member, messages.Hello(message.versions, self.charter.digest, self.head, 0, b"", 0))

    return patch.object(ServerProtocol, "hello", believe)


def _old_rosters() -> AbstractContextManager[Any]:
    read = identity.read_roster
    return patch.object(
        identity, "read_roster", lambda data, administrator, *, least_serial=1: read(data, administrator)
    )


@contextmanager
def _any_vote() -> Iterator[None]:
    def believe(roster: Any, trajectory: Any, votes: Any, verify: Any = None) -> Any:
        return {vote.member: vote for vote in votes}

    with _everywhere("valid_votes", believe):
        yield


def _any_range() -> AbstractContextManager[Any]:
    return patch.object(record_module, "check_range", lambda *arguments: None)


def _any_context() -> AbstractContextManager[Any]:
    """A message of another plan is taken for one of the plan in force."""

    def current(self: ClientProtocol, plan: bytes) -> Any:
        return self._epoch

    return patch.object(ClientProtocol, "_current", current)


def _any_frame() -> AbstractContextManager[Any]:
    def lenient(data: bytes, count: int, bits: int) -> Packed:
        size = packed_size(count, bits)
        fitted = np.frombuffer(bytes(data)[:size].ljust(size, b"\0"), dtype=np.uint8)
        return Packed((fitted & elements_bits(count, bits)).tobytes(), count, bits)

    return patch.object(server_module, "Packed", lenient)


def elements_bits(count: int, bits: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Which bits of a packed vector's bytes an element has, as ones."""
    return np.frombuffer(pack(np.full(count, (1 << bits) - 1, dtype=word_type(bits)), bits), dtype=np.uint8)


def _no_schema() -> AbstractContextManager[Any]:
    """Believe tags and take fields as they come."""

    def decode(decoder: Any, data: bytes, most_bytes: int) -> Any:
        tag, *fields = msgpack.unpackb(data, strict_map_key=False)
        names = {member.__struct_config__.tag: member for member in decoder.type.__args__}
        return names[tag](*fields)

    return patch.object(messages, "_decode", decode)


def _whoever_is_named() -> AbstractContextManager[Any]:
    handler = server_module._HANDLERS[messages.Advertisement]

    def believe(self: ServerProtocol, member: int, message: Any, frames: Any) -> Any:
        return handler(self, message.member, message, frames)

    return patch.dict(server_module._HANDLERS, {messages.Advertisement: believe})


def _whatever_is_rebuilt() -> AbstractContextManager[Any]:
    def rebuild(plan: Any, advertised: Any, members: Any, survivors: Any, step: int, answers: Any) -> Any:
        rows = {
            member + 1: np.frombuffer(answer, dtype=np.uint8).reshape(-1, KEY_BYTES)
            for member, answer in sorted(answers.items())[: plan.threshold]
        }
        return dict(zip(members, (row.tobytes() for row in shamir.combine(rows)), strict=True))

    return patch.object(server_module, "rebuild", rebuild)


def _dropped_masks_left_in() -> AbstractContextManager[Any]:
    unmask = unmasking.unmask

    def survivors_alone(
        plan: Any,
        advertised: Any,
        transcript: Any,
        survivors: Any,
        step: Any,
        chain: Any,
        rebuilt: Any,
        *sums: Any,
        **more: Any,
    ) -> int:
        chosen = {member: secret for member, secret in rebuilt.items() if member in survivors}
        return unmask(plan, advertised, transcript, survivors, step, chain, chosen, *sums, **more)

    return patch.object(server_module, "unmask", survivors_alone)


# -- secrets ---------------------------------------------


@contextmanager
def _nothing_forgotten() -> Iterator[None]:
    """What is superseded is kept, beside what took its place."""
    pass_over, ratchet = LockstepKeys.pass_over, ResilientKeys._ratchet

    def keep_roots(self: LockstepKeys, step: int) -> None:
        vars(self).setdefault("earlier", []).extend(Secret(root.reveal()) for root in self._roots.values())
        pass_over(self, step)

    def keep_seeds(self: ResilientKeys) -> None:
        vars(self).setdefault("earlier", []).append(Secret(self._seed.reveal()))
        ratchet(self)

    with (
        patch.object(LockstepKeys, "pass_over", keep_roots),
        patch.object(ResilientKeys, "_ratchet", keep_seeds),
        patch.object(ClientProtocol, "_rule_erase_answered", lambda self, keys, step: None),
        patch.object(Secret, "erase", lambda self: None),
        patch.object(SecretArray, "erase", lambda self: None),
        patch.object(SecretArray, "erase_row", lambda self, index: None),
    ):
        yield


@contextmanager
def _shown_secrets() -> Iterator[None]:
    with (
        patch.object(Secret, "__repr__", lambda self: bytes(self._bytes).hex()),
        patch.object(SecretArray, "__repr__", lambda self: self._rows.tobytes().hex()),
        patch.object(UnmaskShares, "__repr__", lambda self: self.shares.hex()),
    ):
        yield


def _early_exit() -> AbstractContextManager[Any]:
    return patch.object(Secret, "__eq__", lambda self, other: self._bytes == other._bytes)


SWITCHES: Mapping[str, Switch] = {
    "self-mask": Switch("Resilient: each input carries a mask of its own beside the pairwise ones.", _known_self_masks),
    "transcript-binding": Switch("Keys depend on all advertisements that a client was shown.", _transcript_forgotten),
    "chain-binding": Switch(
        "All masks depend on the state and the whole history at which a client stands.", _chain_forgotten
    ),
    "masks": Switch("Inputs are masked.", _no_masks),
    "one-mask-a-step": Switch(
        "A step's keys are gone once it is masked; a repeated question gets the same bytes.", _masked_as_often_as_asked
    ),
    "low-order-check": Switch("Public keys of low order are refused.", _any_key_will_do),
    "advertisement-context": Switch(
        "Advertisements of another plan, or of another size, are refused.",
        lambda: patch.object(client_module, "check_advertisement", lambda *arguments: None),
    ),
    "summed-check": Switch("What the charter does not let be summed is refused wherever a set is named.", _any_set),
    "sealed": Switch(
        "Values and shares travel under authenticated encryption, bound to sender, receiver and epoch.",
        lambda: patch.object(lockstep, "ChaCha20Poly1305", _NoAuthentication),
    ),
    "value-commitments": Switch(
        "Each member commits to its value before it sees another's, so nobody chooses the start.", _any_value
    ),
    "charter-check": Switch(
        "A charter under which a promise fails is refused, whatever a policy says.", _unchecked_charters
    ),
    "charter-at-hello": Switch("A client of another charter is told apart at its Hello.", _any_charter_says_hello),
    "own-charter": Switch("A client's charter and settings are its own files, never what a server says."),
    "memory": Switch("What a client has joined, voted for and spent outlasts its process."),
    "roster-signature": Switch(
        "A roster counts only with the administrator's signature.",
        lambda: patch.object(identity, "verify", lambda *arguments: None),
    ),
    "roster-serial": Switch("A roster older than the one known is refused.", _old_rosters),
    "vote-signatures": Switch("A vote counts only with its member's signature over this very history.", _any_vote),
    "range-check": Switch("A sum that no inputs can have is refused.", _any_range),
    "context-check": Switch("A message of another plan is refused.", _any_context),
    "frame-check": Switch("A vector's frame has exactly its size, and zeros behind its last element.", _any_frame),
    "schema": Switch("Messages are decoded within limits into typed fields with ranges.", _no_schema),
    "speaker-check": Switch("Who speaks is the connection's key, not what a message says.", _whoever_is_named),
    "commitments": Switch("What is rebuilt is checked against what was advertised.", _whatever_is_rebuilt),
    "dropped-masks": Switch(
        "The masks that the survivors share with whoever dropped are rebuilt and taken out.", _dropped_masks_left_in
    ),
    "erasure": Switch("What is used or superseded is overwritten and let go.", _nothing_forgotten),
    "hidden-reprs": Switch("Objects that hold secrets do not show them.", _shown_secrets),
    "constant-time": Switch("Secrets are compared in a time that does not depend on them.", _early_exit),
}
