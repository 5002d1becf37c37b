"""What is left in a client that is taken over, and what its words and representations tell: no secret.

Masks of a step cannot be rebuilt after it, and everything is gone with the epoch.
"""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from codream_protocols import hybrid, keyschedule
from codream_protocols.client import Ended, State
from codream_protocols.errors import BadSignature, LocalProtocolError, WrongContext
from codream_protocols.keyschedule import StepKeys
from codream_protocols.messages import (
    Complaint,
    Farewell,
    GivenUp,
    Invitation,
    Published,
    Refusal,
    SealDelivery,
    Seals,
    Survivors,
    SurvivorSignatures,
)
from codream_protocols.resilient import ResilientKeys
from codream_protocols.secret import Secret, SecretArray
from secure_codream.simulation.toy_course import LaboratoryCourse
from secure_codream.simulation.wire import Federation
from secure_codream.threats.laboratory.adversary import delivered
from secure_codream.threats.laboratory.liar import reseal

# -- what is left in a client that is taken over ---------------------------------------------


def kept_bytes(item: Any) -> Iterator[bytes]:
    """Every byte string, secret or not, that an object holds."""
    if isinstance(item, bytes | bytearray):
        yield bytes(item)
    elif isinstance(item, Secret):
        yield bytes(item._bytes)
    elif isinstance(item, SecretArray):
        yield from (item._rows[index].tobytes() for index in range(len(item)))
    elif isinstance(item, dict):
        for pair in item.items():
            yield from kept_bytes(pair)
    elif isinstance(item, list | tuple | set):
        for part in item:
            yield from kept_bytes(part)
    elif isinstance(item, msgspec.Struct):
        for name in item.__struct_fields__:
            yield from kept_bytes(getattr(item, name))
    elif hasattr(item, "__dict__"):
        yield from kept_bytes(vars(item))


def pieces(item: Any) -> Iterator[bytes]:
    """Every run of 32 bytes that an object holds, at offsets of 32."""
    for candidate in kept_bytes(item):
        yield from (candidate[start : start + 32] for start in range(0, len(candidate) - 31, 32))


def rebuilds_masks(epoch: Any, step: int) -> bool:
    """Whether any 32 bytes that the client keeps are the step's seed, self-mask seed or mask key."""
    own, plan = epoch.advertisement, epoch.plan.digest
    for piece in pieces(epoch):
        keys = StepKeys(Secret(piece), plan, step)
        if (
            keyschedule.public_key(piece) == own.mask_key(step)
            or keyschedule.self_mask_commitment(piece, plan, step) == own.self_commitment(step)
            or keyschedule.public_key(keys.mask_private.reveal()) == own.mask_key(step)
        ):
            return True
    return False


def test_a_steps_masks_cannot_be_rebuilt_after_it() -> None:
    federation = Federation(6, mode="resilient")
    federation.set_up()
    before = copy.deepcopy(federation.clients[0]._epoch)
    federation.compute()
    assert federation.clients[0].state is State.MASKED
    assert not rebuilds_masks(federation.clients[0]._epoch, 0)
    assert rebuilds_masks(before, 0)  # the control: what was kept before masking does


def test_lockstep_roots_of_a_step_are_gone_once_it_is_masked() -> None:
    federation = Federation(4)
    federation.set_up()
    before = copy.deepcopy(federation.clients[0]._epoch)
    federation.compute()
    after = federation.clients[0]._epoch
    roots = {root.reveal() for root in before.keys._roots.values()}
    assert len(roots) == 3 and not roots & set(pieces(after))
    assert {hybrid.next_root(root) for root in roots} <= set(pieces(after))


def test_what_the_set_up_needed_is_gone_with_it() -> None:
    federation = Federation(4)
    federation.set_up(lost={(0, SealDelivery)})
    keys = federation.clients[0]._epoch.keys
    held = [keys._share_private, keys._value, *keys._agreed.values(), *keys._encapsulated.values()]
    secrets = [secret.reveal() for secret in held]
    federation.tell(0, delivered(federation, 0))
    assert all(secret.erased for secret in held) and keys._kem is None
    assert not set(secrets) & set(pieces(federation.clients[0]._epoch))


def test_a_steps_shares_are_gone_after_its_answer() -> None:
    federation = Federation(6, mode="resilient")
    federation.set_up()
    keys, steps = federation.clients[0]._epoch.keys, federation.plan.steps
    assert isinstance(keys, ResilientKeys)
    kept = copy.deepcopy(keys._held)
    federation.step()
    for member in range(6):
        for row in (0, steps):
            assert keys._held[member]._rows[row].tobytes() == bytes(32) != kept[member]._rows[row].tobytes()
        for row in (1, steps + 1):
            assert keys._held[member]._rows[row].tobytes() == kept[member]._rows[row].tobytes() != bytes(32)


def test_shares_and_masks_of_a_step_that_went_on_without_the_client_are_gone() -> None:
    federation = Federation(6, mode="resilient")
    federation.set_up()
    late = federation.computing.pop(5)
    federation.compute()
    federation.drain(lost={(5, Survivors), (5, SurvivorSignatures)})
    federation.emit(federation.server.expire())
    federation.drain(lost={(5, Survivors), (5, SurvivorSignatures)})
    epoch = federation.clients[5]._epoch
    assert federation.clients[5].progress[1] == 1 and late.step == 0
    for shares in epoch.keys._held.values():
        assert all(not any(shares._rows[row].tobytes()) for row in (0, federation.plan.steps))
    assert not rebuilds_masks(epoch, 0)
    with pytest.raises(LocalProtocolError):
        epoch.keys.stream_keys(0, bytes(32))


@pytest.mark.parametrize("how", ["farewell", "a later epoch", "given up", "the vote"])
@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
def test_everything_is_gone_with_the_epoch(how: str, mode: str) -> None:
    federation = Federation(6, mode=mode)
    federation.set_up()
    epoch = federation.clients[0]._epoch
    if how == "farewell":
        federation.tell(0, Farewell("over", False))
    elif how == "given up":
        (effect,) = federation.tell(0, GivenUp(federation.plan.digest, "over"))
        assert isinstance(effect, Ended)
    elif how == "the vote":
        for _ in range(3):
            federation.step()
    else:
        federation.tell(0, Invitation(federation.offer(epoch=1)))
    assert federation.clients[0]._epoch is not epoch
    assert epoch.group_key.erased and all(root.erased for root in epoch.keys._roots.values())
    if isinstance(epoch.keys, ResilientKeys):
        assert epoch.keys._seed.erased
        assert all(not any(one._rows[row].tobytes()) for one in epoch.keys._held.values() for row in range(len(one)))


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
def test_secrets_are_hidden_in_every_repr(mode: str) -> None:
    """Each attribute of a live client, down to the leaves, shows none of the secret bytes that it drew or holds."""
    federation = Federation(6, mode=mode)
    client = federation.clients[0]
    tape = federation.tapes[0]
    tape.record()
    federation.set_up()
    drawn = tape.stop()
    epoch = client._epoch
    federation.compute()
    secrets = [epoch.group_key.reveal(), *(root.reveal() for root in epoch.keys._roots.values())]
    secrets += [part[:32] for part in drawn]
    if isinstance(epoch.keys, ResilientKeys):
        secrets += [epoch.keys._seed.reveal()]
        for shares in epoch.keys._held.values():
            secrets += [shares.row(row) for row in range(len(shares))]
    assert len(secrets) > 3 and all(any(secret) for secret in secrets)

    def texts(item: Any, depth: int = 0) -> Iterator[str]:
        yield from (repr(item), str(item))
        if depth < 6:
            parts = list(vars(item).values()) if hasattr(item, "__dict__") and not isinstance(item, type) else []
            if isinstance(item, dict):
                parts += [*item.keys(), *item.values()]
            if isinstance(item, list | tuple):
                parts += list(item)
            for part in parts:
                yield from texts(part, depth + 1)

    # The laboratory's tape and diary are no part of a client.
    client._random, client._journal = bytes, None  # type: ignore[assignment]
    everything = "\n".join(texts(client))
    for secret in secrets:
        for shown_as in (secret.hex(), repr(secret)[2:-1], repr(list(secret))[1:-1]):
            assert shown_as not in everything
    assert repr(client) == "<ClientProtocol of member 0, masked>"
    with pytest.raises(TypeError):
        pickle.dumps(client)
    with pytest.raises(TypeError):
        pickle.dumps(epoch)


def test_refusals_and_complaints_never_hold_a_secret() -> None:
    federation = Federation(4)
    federation.set_up(lost={(0, SealDelivery)})
    keys = federation.clients[0]._epoch.keys
    secrets = list(kept_bytes([keys._share_private, keys._value, keys._agreed, keys._encapsulated]))
    honest = delivered(federation, 0)
    items = tuple(msgspec.structs.replace(item, ciphertext=item.ciphertext[::-1]) for item in honest.items)
    with pytest.raises(BadSignature) as caught:
        federation.tell(0, SealDelivery(federation.plan.digest, items))
    trail = ""
    error: BaseException | None = caught.value
    while error is not None:
        trail += f"{error!r} {error} {vars(error)}"
        error = error.__cause__
    sealed = next(item for item in federation.sent if item.kind is Seals and item.member == 3).message
    garbage = next(item for item in reseal(federation, sealed, 3, 0).items if item.member == 0)
    lie = tuple(msgspec.structs.replace(garbage, member=3) if item.member == 3 else item for item in honest.items)
    effects = federation.tell(0, SealDelivery(federation.plan.digest, lie))
    assert isinstance(effects[0].message, Complaint)
    trail += repr(effects)
    assert not any(secret.hex() in trail or repr(secret)[2:-1] in trail for secret in secrets)


def test_what_a_client_refuses_says_the_same_whatever_its_numbers_are() -> None:
    """Refusals rest on public facts: two clients with other inputs refuse with the same words."""
    words = []
    for seed in (1, 2):
        federation = Federation(4, seed=0, course=LaboratoryCourse())
        chance = random.Random(seed)

        def drawn(member: int, compute: Any, chance: random.Random = chance) -> Any:
            return {"dream": [chance.random()] * 20}

        federation.input_of = drawn
        federation.masked()
        message = Published(federation.plan.digest, 2, federation.everybody, bytes(16))
        with pytest.raises(WrongContext) as caught:
            federation.tell(0, message, (bytes(45),))
        words.append(Refusal(caught.value.code, caught.value.found, caught.value.allowed))
    assert words[0] == words[1]
