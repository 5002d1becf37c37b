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
import msgspec
import numpy as np

from codream_protocols import client as client_module
from codream_protocols import identity, keyschedule, messages
from codream_protocols import server as server_module
from codream_protocols.client import ClientProtocol
from codream_protocols.errors import CohortRefused
from codream_protocols.keyschedule import PROTOCOL
from codream_protocols.masks import word_type
from codream_protocols.messages import UnmaskShares
from codream_protocols.packing import packed_size, unpack
from codream_protocols.plan import check_plan
from codream_protocols.secret import Secret, SecretArray
from codream_protocols.server import ServerEpoch
from secure_codream.config import ConfigError
from secure_codream.threats.attack import Defences


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
def _unbound(**forgotten: bytes) -> Iterator[None]:
    """Mask keys that do not depend on the transcript, or on the broadcast."""
    pairwise, own = keyschedule.pairwise_mask_key, keyschedule.self_mask_key

    def pairwise_mask_key(private: bytes, peer: bytes, **context: Any) -> bytes:
        return pairwise(private, peer, **{**context, **forgotten})

    def self_mask_key(secret: bytes, plan: bytes, step: int, broadcast: bytes) -> bytes:
        return own(secret, plan, step, forgotten.get("broadcast", broadcast))

    with patch.multiple(keyschedule, pairwise_mask_key=pairwise_mask_key, self_mask_key=self_mask_key):
        yield


@contextmanager
def _no_masks() -> Iterator[None]:
    def add_mask(*arguments: Any, **options: Any) -> None:
        return None

    with patch.object(client_module, "add_mask", add_mask), patch.object(server_module, "add_mask", add_mask):
        yield


@contextmanager
def _masked_as_often_as_asked() -> Iterator[None]:
    """A second broadcast of a step begins it anew, with the same keys."""
    on_broadcast, ratchet = ClientProtocol._on_broadcast, ClientProtocol._ratchet

    def begin_anew(self: ClientProtocol, message: Any, frames: Any) -> Any:
        epoch = self._epoch
        if epoch is not None and epoch.step is not None and message.step == epoch.step.number:
            epoch.step = None
        return on_broadcast(self, message, frames)

    def keep_the_seed(self: ClientProtocol, epoch: Any) -> None:
        if epoch.step is None or epoch.seed_step < epoch.step.number:
            ratchet(self, epoch)

    with patch.object(ClientProtocol, "_ratchet", keep_the_seed):
        handlers = {key: begin_anew for key, handler in client_module.TRANSITIONS.items() if handler is on_broadcast}
        with patch.dict(client_module.TRANSITIONS, handlers):
            yield


def _any_key_will_do() -> AbstractContextManager[Any]:
    agree = keyschedule.agree

    def lenient(private: bytes, peer: bytes) -> bytes:
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


# -- what is checked before it is believed ---------------------------------------------


@contextmanager
def _everywhere(name: str, replacement: Any) -> Iterator[None]:
    """Replace a function of the client's module where both machines use it."""
    with patch.object(client_module, name, replacement), patch.object(server_module, name, replacement):
        yield


def _unchecked_plans() -> AbstractContextManager[Any]:
    return _everywhere("check_plan", lambda plan: None)


def _any_version() -> AbstractContextManager[Any]:
    check = check_plan
    return _everywhere("check_plan", lambda plan: check(msgspec.structs.replace(plan, protocol=PROTOCOL)))


def _old_rosters() -> AbstractContextManager[Any]:
    read = identity.read_roster
    return patch.object(
        identity, "read_roster", lambda data, administrator, *, least_serial=1: read(data, administrator)
    )


@contextmanager
def _unchecked_broadcasts() -> Iterator[None]:
    def read_arrays(message: Any, frames: tuple[bytes, ...]) -> tuple[Any, ...]:
        return tuple(np.frombuffer(frame[: len(frame) // 4 * 4], dtype="<f4") for frame in frames)

    with (
        patch.object(client_module, "read_arrays", read_arrays),
        patch.object(client_module, "check_clips", lambda spec, clips: None),
    ):
        yield


def _any_frame() -> AbstractContextManager[Any]:
    def lenient(data: bytes, count: int, bits: int) -> Any:
        size = packed_size(count, bits)
        fitted = bytes(data)[:size].ljust(size, b"\0")
        spare = size * 8 - count * bits
        last = fitted[-1] & (0xFF >> spare)
        return unpack(fitted[:-1] + bytes([last]), count, bits).astype(word_type(bits))

    return patch.object(server_module, "unpack", lenient)


def _no_schema() -> AbstractContextManager[Any]:
    """Believe tags and take fields as they come."""

    def decode(data: bytes, kind: Any) -> Any:
        tag, *fields = msgpack.unpackb(data, strict_map_key=False)
        names = {member.__struct_config__.tag: member for member in kind.__args__}
        return names[tag](*fields)

    return patch.object(messages, "_decode", decode)


def _whoever_is_named() -> AbstractContextManager[Any]:
    handler = server_module._HANDLERS[messages.Advertisement]

    def believe(self: ServerEpoch, member: int, message: Any, frames: Any) -> Any:
        return handler(self, message.member, message, frames)

    return patch.dict(server_module._HANDLERS, {messages.Advertisement: believe})


# -- secrets ---------------------------------------------


@contextmanager
def _nothing_forgotten() -> Iterator[None]:
    ratchet = ClientProtocol._ratchet

    def remember(self: ClientProtocol, epoch: Any) -> None:
        vars(epoch).setdefault("earlier_seeds", []).append(Secret(epoch.seed.reveal()))
        ratchet(self, epoch)

    with (
        patch.object(ClientProtocol, "_ratchet", remember),
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
    "self-mask": Switch("Each input carries a mask of its own beside the pairwise ones.", _known_self_masks),
    "transcript-binding": Switch(
        "Pairwise masks depend on all advertisements that a client was shown.", lambda: _unbound(transcript=b"")
    ),
    "broadcast-binding": Switch("All masks depend on every byte of the broadcast.", lambda: _unbound(broadcast=b"")),
    "masks": Switch("Inputs are masked.", _no_masks),
    "one-mask-a-step": Switch(
        "A step's keys are gone once it is masked; a repeated question gets the same bytes.", _masked_as_often_as_asked
    ),
    "low-order-check": Switch("Public keys of low order are refused.", _any_key_will_do),
    "distinct-keys": Switch(
        "Public keys that occur twice are refused.", lambda: _everywhere("check_distinct_keys", lambda items: None)
    ),
    "advertisement-context": Switch(
        "Advertisements of another plan, or of another size, are refused.",
        lambda: patch.object(client_module, "check_advertisement", lambda *arguments: None),
    ),
    "cohort-check": Switch(
        "A set of members smaller than plan and policy demand is refused.",
        lambda: patch.object(ClientProtocol, "_check_cohort", lambda self, plan, members: None),
    ),
    "sealed-shares": Switch(
        "Shares travel under authenticated encryption, bound to sender, receiver and epoch.",
        lambda: patch.object(client_module, "ChaCha20Poly1305", _NoAuthentication),
    ),
    "plan-check": Switch("A plan under which a promise fails is refused, whatever the policy says.", _unchecked_plans),
    "version-check": Switch("A plan of another version of the protocol is refused.", _any_version),
    "roster-signature": Switch(
        "A roster counts only with the administrator's signature.",
        lambda: patch.object(identity, "verify", lambda *arguments: None),
    ),
    "roster-serial": Switch("A roster older than the one known is refused.", _old_rosters),
    "broadcast-checks": Switch(
        "Clips, shapes and numbers of a broadcast are checked against the plan.", _unchecked_broadcasts
    ),
    "frame-check": Switch("A vector's frame has exactly its size, and zeros behind its last element.", _any_frame),
    "schema": Switch("Messages are decoded within limits into typed fields with ranges.", _no_schema),
    "speaker-check": Switch("Who speaks is the connection's key, not what a message says.", _whoever_is_named),
    "commitments": Switch(
        "What is rebuilt is checked against what was advertised.",
        lambda: patch.object(ServerEpoch, "_fits", lambda self, step, member, secret: True),
    ),
    "dropped-masks": Switch(
        "The masks that the survivors share with whoever dropped are rebuilt and taken out.",
        lambda: patch.object(ServerEpoch, "_take_out_dropped", lambda self, step, dropped, private: None),
    ),
    "erasure": Switch("What is used or superseded is overwritten and let go.", _nothing_forgotten),
    "hidden-reprs": Switch("Objects that hold secrets do not show them.", _shown_secrets),
    "constant-time": Switch("Secrets are compared in a time that does not depend on them.", _early_exit),
}
