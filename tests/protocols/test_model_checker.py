"""The model checker finds nothing with all rules on, and what each rule is there for once it is off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from unittest.mock import patch

import pytest

from codream_protocols import hybrid, keyschedule
from codream_protocols.charter import default_threshold
from codream_protocols.client import ClientProtocol
from secure_codream.threats.checker import check, enumerator, histories
from secure_codream.threats.checker.check import COURSES, GAMES, check_row, rows_of
from secure_codream.threats.checker.enumerator import Set, Step, View, breaks, opened, search
from secure_codream.threats.checker.histories import Histories
from secure_codream.threats.checker.model_checker import Explorer, renamed
from secure_codream.threats.checker.node import Node, roots
from secure_codream.threats.checker.wild_server import WildServer
from secure_codream.threats.checker.world import RULES, Setting, World, without


def rows(*members: int) -> list[check.Row]:
    return rows_of(members)


def name(row: check.Row) -> str:
    return f"{row.mode}-{row.members}-{row.colluders}-{row.least}-{row.losses}-{row.steps}"


LONG = {"resilient-4-1-3-allow-2", "resilient-5-1-3-allow-1", "lockstep-5-1-3-blocks-3"}
SETTINGS = [
    pytest.param(row, marks=pytest.mark.exhaustive) if name(row) in LONG or row.members > 5 else row
    for row in rows(3, 4, 5, 6)
]


@pytest.mark.parametrize("row", SETTINGS, ids=name)
def test_no_strategy_leaks(row: check.Row) -> None:
    found = check_row(row)
    assert found.as_promised and found.strategies >= found.set_ups > 0


@pytest.mark.parametrize("game", GAMES, ids=lambda game: f"{'+'.join(game.off)}: {game.attack}")
def test_what_a_rule_prevents_is_found_without_it(game: check.Game) -> None:
    found = game.judge()
    assert found.safe_with
    assert bool(found.told) != bool(game.behind), found
    assert "NOT" not in found.told


def test_every_rule_is_played_off() -> None:
    assert {rule for game in GAMES for rule in game.off} - {check.THRESHOLD_RULE} == set(RULES)
    alone = {game.off[0] for game in GAMES if len(game.off) == 1 and not game.behind}
    layered = set(RULES) - alone  # found only together with what is behind them, or not at all
    assert layered == {
        "_rule_erase_answered",
        "_rule_enough_survivors",
        "_rule_signed_advertisement",
        "_rule_distinct_keys",
    }


def test_an_unknown_rule_is_no_rule() -> None:
    with pytest.raises(LookupError, match="_rule_nothing"):
        without("_rule_nothing")


# -- strategies ---------------------------------------------


def outcomes(explorer: Explorer) -> set[tuple[tuple[int, ...], ...]]:
    """What strategies open, without names: the sizes of the sums in each."""
    found = set()
    for set_up in explorer.set_ups(roots(explorer.world)):
        for _, after in explorer.tellings(set_up.nodes):
            everything = explorer.reader.read(after.values())
            found.add(tuple(sorted(tuple(sorted(map(len, one.sums))) for one in everything)))
    return found


@pytest.mark.parametrize("threshold", [2, 3])
def test_symmetry_leaves_no_outcome_out(threshold: int) -> None:
    setting = Setting("resilient", 4, losses="allow", threshold=threshold)
    some, every = Explorer(World(setting)), Explorer(World(setting))
    every._names = []
    found = outcomes(some)
    assert found == outcomes(every) and len(found) > 1


@pytest.mark.parametrize(
    ("setting", "versions"),
    [
        (Setting("resilient", 4, losses="allow"), 1),
        (Setting("lockstep", 4), 2),
        (Setting("lockstep", 4, 2), 2),
        (Setting("resilient", 6), 1),
    ],
)
def test_of_set_ups_that_differ_in_names_one_is_tried(setting: Setting, versions: int) -> None:
    some, every = (Explorer(World(setting), versions=versions) for _ in range(2))
    names, every._names = every._names, []
    orbits = set()
    for set_up in every.set_ups(roots(every.world)):
        described = [
            sorted(
                (named[member], tuple(renamed(part, named) for part in label)) for member, label in set_up.shown.items()
            )
            for named in names
        ]
        orbits.add(repr(min(described)))
    assert sum(1 for _ in some.set_ups(roots(some.world))) == len(orbits) > 1


def main_tellings(setting: Setting) -> Iterator[tuple[dict[int, Set], Explorer, dict[int, Node]]]:
    """Every telling after the set-up with everybody."""
    world = World(setting)
    explorer = Explorer(world)
    for set_up in explorer.set_ups(roots(world), cohorts=[world.everybody]):
        if all(node.public and node.public.members == world.everybody for node in set_up.nodes.values()):
            for label, after in explorer.tellings(set_up.nodes):
                yield {member: sets[0] for member, sets in label}, explorer, after


@pytest.mark.parametrize(
    ("members", "colluders", "threshold"), [(3, 1, 2), (4, 1, 2), (4, 1, 3), (4, 1, 4), (4, 2, 3), (5, 2, 3), (5, 2, 4)]
)
def test_machines_and_enumerator_agree(members: int, colluders: int, threshold: int) -> None:
    """Strategy by strategy, whether safe or not: the same sums open."""
    step = Step(members, colluders, threshold, colluders + 2)
    count = leaks = 0
    for told, explorer, after in main_tellings(
        Setting("resilient", members, colluders, losses="allow", threshold=threshold)
    ):
        count += 1
        sums = opened(step, (View(step.everybody, tuple(told.items())),))
        everything = explorer.reader.read(after.values())
        assert sorted(one for found in everything for one in found.sums) == sorted(sums), told
        leak = explorer.reader.leak(list(after.values()))
        assert (leak is not None) == breaks(step, sums)
        if leak is not None and leaks < 20:
            leaks += 1
            assert explorer.reader.confirm(leak)
    assert count >= 1 and (leaks > 0) == (2 * threshold <= members + colluders < members + members - 2)


def test_histories_part_and_masks_with_them() -> None:
    """Told two different sums, clients share no masks in the next step: nothing opens."""
    world = World(Setting("lockstep", 4, steps=2))
    explorer = Explorer(world)
    (set_up,) = explorer.set_ups(roots(world))
    last = [clients for clients in explorer.sequences(set_up.nodes, 2) if clients[0].machine.progress[1] == 1]
    apart = [len({node.chain for node in clients}) for clients in last]
    assert sorted(set(apart)) == [1, 2, 3]
    for clients, histories_ in zip(last, apart, strict=True):
        steps = [found.step for found in explorer.reader.read(clients)]
        assert steps == ([0, 1] if histories_ == 1 else [0])


def test_confirming_fails_for_what_is_no_leak() -> None:
    """A leak with a coefficient, or a member, changed is not read for real."""
    world = World(Setting("resilient", 4, losses="allow", threshold=2))
    explorer = Explorer(world)
    leak = next(
        found
        for set_up in explorer.set_ups(roots(world))
        for _, after in explorer.tellings(set_up.nodes)
        if (found := explorer.reader.leak(list(after.values()))) is not None
    )
    assert leak.readable is not None and explorer.reader.confirm(leak)
    rows = leak.readable.rows
    wrong = tuple(1 - entry for entry in rows[0])
    changed = replace(leak, readable=replace(leak.readable, rows=(wrong[:1] + rows[0][1:],)))
    assert not explorer.reader.confirm(changed)


# -- without cryptography ---------------------------------------------


@pytest.mark.parametrize(
    ("members", "colluders"), [(members, colluders) for members in range(3, 8) for colluders in range(1, members - 1)]
)
def test_threshold_rule_is_exact(members: int, colluders: int) -> None:
    """Where some smaller set may be summed too; where only everybody may, one share less would do."""
    for threshold in range(1, members + 1):
        leaks = any(
            search(Step(members, colluders, threshold, least)).strategy for least in range(colluders + 2, members + 1)
        )
        safe = 2 * threshold > members + colluders
        assert leaks != safe or (members == colluders + 2 and 2 * threshold == members + colluders)
    assert 2 * default_threshold(members, colluders) > members + colluders


@pytest.mark.parametrize("colluding", [(0,), (5,), (0, 1), (0, 5), (4, 5)])
def test_blocks_of_six(colluding: Set) -> None:
    """Two blocks of three, or of four and three, whoever colludes: with c of each block at most."""
    colluders = len(colluding)
    blocks = ((0, 1, 2), (3, 4, 5)) if colluders == 1 else ((0, 1, 2, 3, 4, 5),)
    threshold = default_threshold(6, colluders)
    assert search(Step(6, colluders, threshold, colluders + 2, blocks, colluding=colluding)).strategy is None


@pytest.mark.parametrize(
    ("members", "colluders"), [(4, 1), (5, 2), pytest.param(5, 1, marks=pytest.mark.exhaustive), (6, 3)]
)
def test_without_signatures_of_one_set_few_are_safe(members: int, colluders: int) -> None:
    threshold = default_threshold(members, colluders)
    assert search(Step(members, colluders, threshold, colluders + 2, agreed=False)).strategy is None


def test_without_signatures_of_one_set_seven_are_too_many() -> None:
    told = tuple((member, tuple(sorted((0, 6, member or 1)))) for member in range(6))
    strategy = (View(tuple(range(7)), told),)
    step = Step(7, 1, default_threshold(7, 1), 3, agreed=False)
    assert opened(step, strategy) == ((0,),) and breaks(step, ((0,),))
    assert opened(Step(7, 1, default_threshold(7, 1), 3), strategy) == ()


def test_members_must_be_the_same_to_all() -> None:
    """Were clients told of different members, one would be read: those dropped answer too, and lift the others' masks.

    Client 2 masks for {0, 2, 3}; 0 and 1 hear that {1, 2, 3} survived, and give shares of the self mask of 2 and of the
    mask key of 0.
    """
    for members, colluders in [(4, 1), (5, 1), (5, 2)]:
        step = Step(members, colluders, default_threshold(members, colluders), colluders + 2, split=True)
        found = search(step)
        assert found.strategy is not None and len(found.opened[0]) == 1
        assert search(replace(step, split=False)).strategy is None


def test_the_cohort_that_counts_is_those_who_hold_shares() -> None:
    """A threshold from a smaller number, such as those who are left after the set-up, is too low."""
    holders, left = 6, 4
    assert search(Step(holders, 1, default_threshold(left, 1), 3)).strategy is not None
    assert search(Step(holders, 1, default_threshold(holders, 1), 3)).strategy is None


def test_with_different_members_fewer_blocks_than_the_least_could_be_summed() -> None:
    """Twelve in four blocks, at least two of them: one block alone would open."""
    blocks = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11))
    step = Step(12, 1, default_threshold(12, 1), 6, blocks, split=True, colluding=(0,))
    told = (0, 1, 2, 3, 4, 5)
    apart = View((0, 1, 2, 6, 7, 8, 9, 10, 11), ((1, None), (2, None)))
    strategy = (View(step.everybody, tuple((member, told) for member in range(3, 12))), apart)
    assert opened(step, strategy) == ((1, 2),) and breaks(step, ((1, 2),))
    together = (View(step.everybody, tuple((member, told) for member in range(1, 12))),)
    assert opened(step, together) == ((1, 2, 3, 4, 5),) and not breaks(step, opened(step, together))


# -- what is learnt, and taken for true ---------------------------------------------

SCENES = [
    (Setting("lockstep", 3), 2),
    (Setting("lockstep", 3, playing=0), 2),
    (Setting("resilient", 4), 1),
    pytest.param(Setting("lockstep", 4), 3, marks=pytest.mark.exhaustive),
    pytest.param(Setting("resilient", 4), 2, marks=pytest.mark.exhaustive),
    pytest.param(Setting("resilient", 4, losses="allow"), 2, marks=pytest.mark.exhaustive),
    pytest.param(Setting("resilient", 5, losses="allow"), 1, marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize(("setting", "epochs"), SCENES)
def test_all_who_learn_learn_the_same(setting: Setting, epochs: int) -> None:
    found = Histories(World(setting), epochs, crashes=True).search()
    assert found.leak is None and found.learnt > 10


@pytest.mark.parametrize("rule", ["_rule_certificate", "_rule_bound_by_vote"])
@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
def test_without_votes_two_learn_different_things(rule: str, mode: str) -> None:
    setting = Setting("lockstep", 3) if mode == "lockstep" else Setting("resilient", 4)
    found = Histories(World(setting, without(rule)), 2).search()
    assert found.leak is not None and found.leak.promise == "Alike"


def test_no_lie_is_taken() -> None:
    assert histories.lies(World(Setting("lockstep", 3, playing=0))).leak is None
    assert histories.false_records(World(Setting("resilient", 4, playing=0, losses="allow", steps=2))).leak is None


def test_nobody_chooses_a_start() -> None:
    assert histories.two_values(World(Setting("lockstep", 4))).leak is None

    def to_nothing(label: str) -> Callable[[bytes, int, bytes], bytes]:
        return lambda plan, member, value: keyschedule.digest(label, bytes([member]))

    with (
        patch.object(hybrid, "commit", to_nothing("value")),
        patch.object(hybrid, "commit_start", to_nothing("start share")),
    ):
        found = histories.two_values(World(Setting("lockstep", 4)))
    assert found.leak is not None and found.leak.promise == "What"


def test_a_replay_answers_nothing_new() -> None:
    for setting in (Setting("lockstep", 4), Setting("resilient", 4, losses="allow")):
        found = histories.replays(World(setting))
        assert found.leak is None and found.count > 100


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "setting",
    [
        Setting("lockstep", 4, steps=2),
        Setting("lockstep", 4, playing=0, steps=2),
        Setting("resilient", 5, losses="allow", steps=2),
        Setting("resilient", 6, steps=3),
    ],
    ids=lambda setting: f"{setting.mode}-{setting.members}-{setting.losses}-{setting.playing}",
)
def test_a_wild_server_finds_nothing(setting: Setting, seed: int) -> None:
    found = WildServer(World(setting), seed).run(150)
    assert found.leak is None and found.count > 5


def test_a_wild_server_finds_what_lacks_a_rule() -> None:
    rules = {
        "_rule_certificate": Setting("lockstep", 4),
        "_rule_true_sum": Setting("lockstep", 4, playing=0),
        "_rule_whole_blocks": Setting("resilient", 6),
    }
    for rule, setting in rules.items():
        assert any(_wild(setting, without(rule), seed) for seed in range(30)), rule


def _wild(setting: Setting, client_class: type[ClientProtocol], seed: int) -> bool:
    return WildServer(World(setting, client_class), seed).run(120).leak is not None


def test_courses_of_events_have_names_and_play() -> None:
    names = [what for what, _ in COURSES]
    assert len(set(names)) == len(names)
    course = check.check_course(*COURSES[names.index("sums told without a colluder: lockstep, n = 3")])
    assert course.as_promised and course.count > 100


def test_findings_are_told() -> None:
    """A leak is marked in each table, and makes the whole not as promised."""
    settings = (check_row(rows(3)[0]),)
    counted = (check.count(4, 1, split=True),)
    games = (GAMES[2].judge(),)
    findings = check.Findings(settings, counted, (), games)
    assert findings.as_promised and findings.as_json()["as_promised"] and len(check.tables(findings)) == 4
    assert counted[0].told_apart and check.count_cells(counted[0])[-1] == "leak"
    leaking = check_row(rows(3)[0], without("_rule_members"))
    broken = replace(findings, settings=(leaking,))
    assert not broken.as_promised and "NOT" in check.setting_cells(leaking)[-1]
    assert enumerator.PRIME.bit_length() == 61
