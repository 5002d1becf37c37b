"""A new charter must not cut a block that a client's data have answered for, unless the client permits it knowingly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from codream_protocols.charter import Charter, successor_of
from codream_protocols.courses.sums import Sums
from codream_protocols.errors import PolicyViolation
from codream_protocols.identity import Roster
from codream_protocols.specs import Block
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import learning_settings
from secure_codream.configuration.reading import ConfigError
from secure_codream.deployment.blocks_answered import BlocksAnswered
from secure_codream.deployment.exposure import all_noised, exposures, protection
from tests.secure_codream.small import codream, roster_of

OWN = roster_of(9)[1].members[0].identity_key
RESILIENT = {"aggregation": {"mode": "resilient"}}


def roster(*numbers: int) -> Roster:
    """A roster of these of nine clients, in this order."""
    _, whole = roster_of(9)
    return msgspec.structs.replace(whole, members=tuple(whole.members[number] for number in numbers))


def charter(members: Roster) -> Charter:
    return codream(**RESILIENT).charter(members)


@pytest.fixture
def answered(tmp_path: Path) -> BlocksAnswered:
    """A client that has answered for six in two blocks: 0, 1, 2 and 3, 4, 5."""
    remembered = BlocksAnswered(tmp_path / "answered.json")
    members = roster(*range(6))
    assert charter(members).blocks == ((0, 1, 2), (3, 4, 5))
    assert remembered.check(members, charter(members), OWN, permitted=False, noised=False) is None
    remembered.add(members, charter(members))
    return BlocksAnswered(tmp_path / "answered.json")  # as the next process finds it


@pytest.mark.parametrize(
    "members",
    [
        range(6),
        (0, 1, 2),  # a block leaves
        range(9),  # a new block comes
        (3, 4, 5, 0, 1, 2, 6, 7, 8),  # and numbers change
        (0, 2, 1, 5, 4, 3),
    ],
)
def test_blocks_that_stay_whole_are_no_cut(answered: BlocksAnswered, members: tuple[int, ...]) -> None:
    found = roster(*members)
    assert answered.check(found, charter(found), OWN, permitted=False, noised=False) is None


@pytest.mark.parametrize(
    ("members", "told_apart"),
    [
        ((0, 1, 2, 3, 4), "client-5"),  # one leaves: the sums before and after differ by it
        ((0, 1, 2, 3, 4, 5, 6), "client-6"),  # one comes into a block
        ((0, 1, 3, 2, 4, 5), "client-2"),  # two change places
        ((0, 1, 2, 3, 4, 8), "client-8"),
    ],
)
def test_charter_that_cuts_a_block_is_refused_and_says_whom_it_exposes(
    answered: BlocksAnswered, members: tuple[int, ...], told_apart: str
) -> None:
    found = roster(*members)
    with pytest.raises(PolicyViolation, match=r"cuts a block.*cuts = true in \[policy\]") as caught:
        answered.check(found, charter(found), OWN, permitted=False, noised=False)
    shown = [member.name for member in found.members]
    assert told_apart in str(caught.value) or told_apart not in shown
    text = answered.check(found, following(roster(*range(6)), found), OWN, permitted=True, noised=False)
    assert text is not None and "Their numbers that depend on no state show exactly" in text
    # Noise that was calibrated for a client keeps what it promises, whatever is subtracted.
    assert answered.check(found, charter(found), OWN, permitted=False, noised=True) is None


def following(old: Roster, new: Roster, *, told: bool = True) -> Charter:
    """The charter of `new` that follows that of `old`, and says of its blocks."""
    before = successor_of(charter(old), old, bytes(32), 7)
    blocks = before.blocks if told else ()
    return msgspec.structs.replace(charter(new), predecessor=msgspec.structs.replace(before, blocks=blocks))


def test_new_member_that_a_cut_exposes_is_told_by_the_charter(tmp_path: Path) -> None:
    """It has answered for nothing, and yet the sums before it came and after differ by it alone."""
    old, new = roster(*range(6)), roster(*range(7))
    fresh = BlocksAnswered(tmp_path / "answered.json")
    with pytest.raises(PolicyViolation, match="tell apart client-6"):
        fresh.check(new, following(old, new), OWN, permitted=False, noised=False)
    assert "client-6" in str(fresh.check(new, following(old, new), OWN, permitted=True, noised=False))
    # Why the next test: what it is not told it cannot know.
    assert fresh.check(new, following(old, new, told=False), OWN, permitted=False, noised=False) is None


def test_member_that_takes_a_cut_sees_to_it_that_new_members_are_told(answered: BlocksAnswered) -> None:
    old, new = roster(*range(6)), roster(*range(7))
    assert answered.check(new, following(old, new), OWN, permitted=True, noised=False) is not None
    with pytest.raises(PolicyViolation, match="does not say so to new members"):
        answered.check(new, following(old, new, told=False), OWN, permitted=True, noised=False)
    # What it answered for with others alone concerns nobody here.
    others = roster(6, 7, 8)
    assert answered.check(others, following(old, others, told=False), OWN, permitted=False, noised=False) is None


def test_successor_that_is_to_bear_fewer_colluders_is_judged_by_the_more(tmp_path: Path) -> None:
    """Old sums over six, which three colluders may know, and new ones over three of them: the rest is three more."""
    members = roster(*range(6))
    strict = codream(aggregation={"mode": "resilient", "colluders": 3}).charter(members)
    assert strict.blocks == ((0, 1, 2, 3, 4, 5),)
    remembered = BlocksAnswered(tmp_path / "answered.json")
    remembered.add(members, strict)
    after = successor_of(strict, members, bytes(32), 7)
    lax = msgspec.structs.replace(charter(members), predecessor=after)
    assert lax.blocks == ((0, 1, 2), (3, 4, 5)) and after.colluders == 3
    for known in (remembered, BlocksAnswered(tmp_path / "answered.json"), BlocksAnswered(tmp_path / "none.json")):
        with pytest.raises(PolicyViolation, match="fewer than the 5 that every part needs"):
            known.check(members, lax, OWN, permitted=False, noised=False)
    alike = codream(aggregation={"mode": "resilient", "colluders": 1}).charter(members)
    other = BlocksAnswered(tmp_path / "other.json")  # control: what was to bear one all along
    other.add(members, alike)
    assert other.check(members, charter(members), OWN, permitted=False, noised=False) is None


def test_client_whose_key_was_renewed_takes_no_charter_unless_it_is_permitted(answered: BlocksAnswered) -> None:
    """Old and new blocks share no key then, and a cut would not be seen."""
    found = roster(*range(6))
    renewed = b"n" * 32
    with pytest.raises(PolicyViolation, match="identity key is another"):
        answered.check(found, charter(found), renewed, permitted=False, noised=False)
    assert "identity key" in str(answered.check(found, following(found, found), renewed, permitted=True, noised=False))


def test_predecessors_blocks_add_up_over_charters() -> None:
    old, new = roster(*range(6)), roster(*range(7))
    second = following(old, new)
    third = successor_of(second, new, bytes(32), 9)
    assert len(third.blocks) == 3 and set(successor_of(charter(old), old, bytes(32), 7).blocks) < set(third.blocks)


def test_charter_that_names_the_old_blocks_keeps_them_whatever_the_order(answered: BlocksAnswered) -> None:
    mixed = roster(0, 3, 1, 4, 2, 5)
    with pytest.raises(PolicyViolation):
        answered.check(mixed, charter(mixed), OWN, permitted=False, noised=False)
    blocks = [["client-0", "client-1", "client-2"], ["client-3", "client-4", "client-5"]]
    kept = codream(aggregation={"mode": "resilient", "blocks": blocks}).charter(mixed)
    assert kept.blocks == ((0, 2, 4), (1, 3, 5))
    assert answered.check(mixed, kept, OWN, permitted=False, noised=False) is None


def test_cut_over_several_charters_is_found(answered: BlocksAnswered) -> None:
    """Blocks of two charters before it, mixed: each part of the refinement would be one or two clients."""
    later = roster(0, 1, 2, 6, 7, 8)
    answered.check(later, charter(later), OWN, permitted=False, noised=False)
    answered.add(later, charter(later))
    mixed = roster(3, 4, 6, 5, 7, 8)
    with pytest.raises(PolicyViolation):
        answered.check(mixed, charter(mixed), OWN, permitted=False, noised=False)


def test_each_block_is_remembered_once(answered: BlocksAnswered, tmp_path: Path) -> None:
    before = (tmp_path / "answered.json").read_bytes()
    members = roster(*range(6))
    answered.add(members, charter(members))
    assert (tmp_path / "answered.json").read_bytes() == before


NO_LISTS = [
    b"",
    b"{}",
    b"[]",
    b"\xff",
    b'{"blocks": 3, "colluders": 1}',
    b'{"blocks": [3], "colluders": 1}',
    b'{"blocks": []}',
]


@pytest.mark.parametrize("content", NO_LISTS)
def test_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    """Read as no blocks at all, it would permit every cut."""
    (tmp_path / "answered.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"answered\.json: found no list of blocks"):
        BlocksAnswered(tmp_path / "answered.json")


# -- what is said when keys are made and when a client joins ---------------------------------------------


def test_exposure_is_said_in_the_modes_own_words() -> None:
    members = roster(*range(6))
    (line,) = exposures(codream(), members)
    assert line.startswith("Lockstep: every sum is over all 6 clients") and "Up to 4 of them colluding" in line
    (line,) = exposures(codream(**RESILIENT), members)
    assert "client-0, client-1, client-2; client-3, client-4, client-5" in line
    one, more = exposures(codream(**RESILIENT), roster(0, 1, 2))
    assert "one block" in more and "client-0, client-1, client-2" in one
    lines = exposures(codream(aggregation={"mode": "resilient", "losses": "allow"}), members)
    assert any(
        "losses = 'allow': two sums that differ by one client show that client's numbers" in one for one in lines
    )
    _, told = exposures(codream(dreams={"matched": True}), members)
    assert "how bright and how contrasted the clients' images are" in told
    previous = {"charter": "ab" * 32, "head": "cd" * 32, "certified": 1}
    assert any("cuts = true" in one for one in exposures(codream(predecessor=previous), members))


def test_noise_that_lets_a_cut_pass_is_that_of_every_vector_not_a_table() -> None:
    """A course of one's own may stand beside `[client_privacy]` and have no noise at all."""
    members = roster(*range(6))
    noise = {"epsilon": 4.0, "delta": 1e-5, "update_norm": 1.0, "logit_norm": 1.0}
    noised = codream(client_privacy=noise)
    assert all_noised(make_course(noised), noised.charter(members))
    assert not all_noised(make_course(codream()), codream().charter(members))
    plain = Sums({"visits": (Block("patients", 1, 10.0),)})
    assert not all_noised(plain, noised.charter(members))


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({}, "none."),
        ({"privacy": {"epsilon": 4.0}}, "each record, epsilon 4 at delta a tenth of one over a client's images; "),
        ({"privacy": {"epsilon": 4.0, "delta": 1e-5}}, "each record, epsilon 4 at delta 1e-05; models need group norm"),
        (
            {"client_privacy": {"epsilon": 8.0, "delta": 1e-5, "update_norm": 1.0, "logit_norm": 1.0}},
            "all that one client sends, epsilon 8 at delta 1e-05.",
        ),
    ],
)
def test_whoever_accepts_reads_the_bound_itself(tables: dict[str, Any], said: str) -> None:
    """It was said that there is a [privacy], and not how much of it."""
    assert protection(codream(**tables)).startswith(f"Differential privacy: {said}")


def test_privacy_chooses_a_rate_at_which_private_clients_do_not_forget_and_says_so() -> None:
    """A first private federation, with the usual defaults, ended far below training alone. Who names one has chosen."""
    private = {"privacy": {"epsilon": 4.0}}
    for tables, lr, noise in (
        ({}, 0.02, 0.3),
        (private, 0.0025, 0.0),
        ({**private, "learning": {"distil_lr": 0.02}}, 0.02, 0.0),
    ):
        config = codream(**tables)
        settings = learning_settings(config)
        assert (settings.distil_lr, settings.distil_noise) == (lr, noise)
        assert config.settings["learning"]["distil_lr"] == lr, "in the charter that all accept"
        assert (f"distil_lr = {lr:g} and distil_noise = {noise:g}" in protection(config)) is ("privacy" in tables)
