"""`secure-codream check`: what the model checker tried, how much of it, and whether it found what the protocol says.

Four tables. Settings: for each number of members and colluders and both modes, every strategy of a malicious server in
set-up and steps, against the real machines. Without cryptography: every threshold with up to six members; a step is
safe exactly where 2 threshold > n + c. Courses of events: whole epochs, lies, sequences of sets, a server that does
anything. Defences: for each rule of the client what is found once it is off; a rule with another behind it is found
only together with that one, and then the rows say so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any, Literal

from rich.table import Table

from codream_protocols.charter import Policy
from codream_protocols.client import ClientProtocol
from secure_codream.threats.checker import enumerator, histories, rings
from secure_codream.threats.checker.blocks import Federation, successions
from secure_codream.threats.checker.enumerator import Set
from secure_codream.threats.checker.histories import Histories, Tried
from secure_codream.threats.checker.model_checker import Explorer
from secure_codream.threats.checker.node import roots
from secure_codream.threats.checker.reader import Leak
from secure_codream.threats.checker.wild_server import WildServer
from secure_codream.threats.checker.world import Setting, World, without

EXHAUSTIVE_MEMBERS = 5  # with more, only sets of whole blocks are tried on machines, and any sets without cryptography


# -- set-up and steps ---------------------------------------------


@dataclass(frozen=True)
class Row:
    """What every strategy against one setting brought.

    Attributes:
        versions: of each colluder's keys.
        set_ups: ways to set an epoch up.
        strategies: ways through its steps, all set-ups together.
        seconds: how long it took.
        found: the first leak in words; empty if there is none.
    """

    mode: Literal["lockstep", "resilient"]
    members: int
    colluders: int
    least: int
    losses: Literal["blocks", "allow"]
    steps: int
    versions: int
    set_ups: int = 0
    strategies: int = 0
    seconds: float = 0.0
    found: str = ""

    @property
    def as_promised(self) -> bool:
        """Whether nothing leaks."""
        return not self.found


def rows_of(members: Iterable[int]) -> list[Row]:
    """The settings that are tried for these numbers of members."""
    found = []
    for count in members:
        for colluders in range(1, count - 1):
            least = colluders + 2
            found.append(Row("lockstep", count, colluders, least, "blocks", 3, 2))
            found.append(Row("resilient", count, colluders, least, "blocks", 3 if count < 2 * least else 1, 1))
            if count <= EXHAUSTIVE_MEMBERS:
                versions = 2 if count < EXHAUSTIVE_MEMBERS else 1
                found += [
                    Row("resilient", count, colluders, more, "allow", 1, versions) for more in range(least, count + 1)
                ]
            if count < EXHAUSTIVE_MEMBERS:
                found.append(Row("resilient", count, colluders, least, "allow", 2, 1))
    return found


def check_row(row: Row, client_class: type[ClientProtocol] = ClientProtocol) -> Row:
    """Try every strategy against a setting, until one leaks."""
    started = time.perf_counter()
    setting = Setting(row.mode, row.members, row.colluders, least=row.least, losses=row.losses, steps=row.steps)
    world = World(setting, client_class)
    explorer = Explorer(world, versions=row.versions, late=row.members < EXHAUSTIVE_MEMBERS and row.steps == 1)
    cohorts = [world.everybody] if row.steps > 1 else ()
    set_ups = strategies = 0
    found = ""
    for set_up in explorer.set_ups(roots(world), cohorts=cohorts):
        set_ups += 1
        for clients in explorer.sequences(set_up.nodes, row.steps):
            strategies += 1
            if (leak := explorer.reader.leak(clients)) is not None:
                found = leak.told
                break
        if found:
            break
    seconds = time.perf_counter() - started
    return replace(row, set_ups=set_ups, strategies=strategies, seconds=seconds, found=found)


# -- without cryptography ---------------------------------------------


@dataclass(frozen=True)
class Count:
    """What every strategy in one step brought, without machines, over all least numbers of survivors.

    Attributes:
        safe_from: the smallest threshold with which nothing leaks; n + 1 if there is none.
        rule: the smallest with 2 threshold > n + c.
        told_apart: whether with that one something leaks if clients may be told of different members.
    """

    members: int
    colluders: int
    strategies: int
    safe_from: int
    rule: int
    told_apart: bool
    seconds: float

    @property
    def as_promised(self) -> bool:
        """Whether the rule is exact; where only everybody can be summed, one less will do."""
        return self.safe_from == self.rule or (self.members == self.colluders + 2 and self.safe_from <= self.rule)


def count(members: int, colluders: int, *, split: bool) -> Count:
    """Try every strategy in one step, with every threshold; with `split` also those that show clients other members."""
    started = time.perf_counter()
    strategies, rule = 0, (members + colluders) // 2 + 1
    safe_from = 1
    for threshold in range(1, members + 1):
        for least in range(colluders + 2, members + 1):
            found = enumerator.search(enumerator.Step(members, colluders, threshold, least))
            strategies += found.tried
            if found.strategy is not None:
                safe_from = threshold + 1
    apart = False
    if split and rule <= members:
        step = enumerator.Step(members, colluders, rule, colluders + 2, split=True)
        apart = enumerator.search(step).strategy is not None
    return Count(members, colluders, strategies, safe_from, rule, apart, time.perf_counter() - started)


# -- courses of events ---------------------------------------------


@dataclass(frozen=True)
class Course:
    """What a course of events brought: what was tried, how much, how often a result was learnt, and the first leak."""

    what: str
    count: int
    learnt: int
    seconds: float
    found: str = ""

    @property
    def as_promised(self) -> bool:
        """Whether no promise was broken."""
        return not self.found


def _allow(members: int, **more: Any) -> Setting:
    return Setting("resilient", members, losses="allow", **more)


def _wild(setting: Setting, runs: int, actions: int) -> Tried:
    count = learnt = 0
    for seed in range(runs):
        found = WildServer(World(setting), seed).run(actions)
        count, learnt = count + found.count, learnt + found.learnt
        if found.leak is not None:
            return Tried(count, found.leak, learnt)
    return Tried(count, learnt=learnt)


def _sums(servers: int) -> Tried:
    random, sums = Random(1), 0  # noqa: S311 - an attacker's choices
    for _ in range(servers // 50):
        federation = Federation(random)
        for _ in range(50):
            found = federation.attack(40)
            sums += len(found.sums)
            if found.isolated or found.told_apart:
                return Tried(sums, Leak("Who", f"{found.sums} isolate {found.isolated}"))
    return Tried(sums)


def _charters(count: int) -> Tried:
    for found in successions(Random(2), count):  # noqa: S311 - an attacker's choices
        if not found.cut and (found.isolated or found.fewest == 1):
            return Tried(count, Leak("Who", f"charters {found.charters} isolate {found.isolated}"))
    return Tried(count)


COURSES: tuple[tuple[str, Callable[[], Tried]], ...] = (
    (
        "scenes: lockstep, n = 3, c = 1, up to 3 epochs, crashes",
        lambda: Histories(World(Setting("lockstep", 3)), 3, crashes=True).search(),
    ),
    (
        "scenes: lockstep, n = 4, c = 1, up to 2 epochs, crashes",
        lambda: Histories(World(Setting("lockstep", 4)), 2, crashes=True).search(),
    ),
    (
        "scenes: resilient, n = 4, c = 1, up to 2 epochs, crashes",
        lambda: Histories(World(Setting("resilient", 4)), 2, crashes=True).search(),
    ),
    (
        "scenes: resilient, n = 4, any sets, 2 epochs, crashes",
        lambda: Histories(World(_allow(4)), 2, crashes=True).search(),
    ),
    ("replays and crashes: lockstep, n = 4", lambda: histories.replays(World(Setting("lockstep", 4)))),
    ("replays and crashes: resilient, n = 4, any sets", lambda: histories.replays(World(_allow(4)))),
    ("starts that a colluder chose: lockstep, n = 4", lambda: histories.two_values(World(Setting("lockstep", 4)))),
    ("sums told without a colluder: lockstep, n = 3", lambda: histories.lies(World(Setting("lockstep", 3, playing=0)))),
    ("sums told without a colluder: resilient, n = 4, any sets", lambda: histories.lies(World(_allow(4, playing=0)))),
    (
        "sums told with a colluder outside of the epoch: resilient, n = 6",
        lambda: histories.lies(World(Setting("resilient", 6)), (0, 1, 2)),
    ),
    (
        "records shown with a colluder outside of the epoch: resilient, n = 6",
        lambda: histories.false_records(World(Setting("resilient", 6)), (0, 1, 2)),
    ),
    (
        "records shown without a colluder: resilient, n = 4",
        lambda: histories.false_records(World(_allow(4, playing=0, steps=2))),
    ),
    (
        "anything, to 20 lockstep federations of 4, c = 1: messages taken",
        lambda: _wild(Setting("lockstep", 4, steps=2), 20, 200),
    ),
    (
        "anything, to 20 resilient federations of 5, any sets: messages taken",
        lambda: _wild(_allow(5, steps=2), 20, 200),
    ),
    (
        "anything, to 20 resilient federations of 6, two blocks: messages taken",
        lambda: _wild(Setting("resilient", 6, steps=2), 20, 200),
    ),
    ("sums that 10,000 servers get of up to 12 members in blocks", lambda: _sums(10_000)),
    ("charters that follow one another: what isolates a member is a cut", lambda: _charters(10_000)),
)


def check_course(what: str, play: Callable[[], Tried]) -> Course:
    """Play a course of events."""
    started = time.perf_counter()
    tried = play()
    found = "" if tried.leak is None else f"{tried.leak.promise}: {tried.leak.told}"
    return Course(what, tried.count, tried.learnt, time.perf_counter() - started, found)


# -- defences ---------------------------------------------

THRESHOLD_RULE = "threshold rule"
_DEFAULT_POLICY = Policy(losses=True)


@dataclass(frozen=True)
class Game:
    """An attack with some rules off.

    Attributes:
        off: names of the client's rules, or `THRESHOLD_RULE`.
        attack: what is tried, in a few words.
        play: tries it on such clients.
        behind: what else prevents it when only these are off; empty if nothing does.
    """

    off: tuple[str, ...]
    attack: str
    play: Callable[[type[ClientProtocol]], Tried]
    behind: str = ""

    def judge(self) -> Defence:
        """Play with the rules on, and off."""
        if self.off == (THRESHOLD_RULE,):
            on, off = _steps(_allow(4))(ClientProtocol), self.play(ClientProtocol)
        else:
            on, off = self.play(ClientProtocol), self.play(without(*self.off))
        promise, told = ("", "") if off.leak is None else (off.leak.promise, off.leak.told)
        return Defence(self.off, self.attack, self.behind, on.leak is None, promise, told, off.count)


@dataclass(frozen=True)
class Defence:
    """What a game brought.

    Attributes:
        safe_with: whether nothing is found when nothing is off.
        promise: the one that is broken without these rules; empty if none is.
        told: how.
        tried: until then.
    """

    off: tuple[str, ...]
    attack: str
    behind: str
    safe_with: bool
    promise: str
    told: str
    tried: int

    @property
    def as_promised(self) -> bool:
        """Whether it is found without, and not with; or not at all where another defence is behind."""
        return self.safe_with and bool(self.told) != bool(self.behind)


def _steps(
    setting: Setting, *, claims: int = 1, uniform: bool = False, versions: int = 1
) -> Callable[[type[ClientProtocol]], Tried]:
    """Every strategy in the set-up and the first step, confirmed by reading it for real."""

    def play(client_class: type[ClientProtocol]) -> Tried:
        world = World(setting, client_class)
        explorer = Explorer(world, uniform=uniform, versions=versions)
        count = 0
        for set_up in explorer.set_ups(roots(world)):
            for _, after in explorer.tellings(set_up.nodes, claims=claims):
                count += 1
                leak = explorer.reader.leak(list(after.values()))
                if leak is not None:
                    return Tried(count, _confirmed(explorer, leak))
        return Tried(count)

    return play


def _confirmed(explorer: Explorer, leak: Leak) -> Leak:
    confirmed = explorer.reader.confirm(leak)
    return leak if confirmed else replace(leak, told=f"{leak.told}, which could NOT be confirmed")


def scattered(claims: int) -> Callable[[type[ClientProtocol]], Tried]:
    """Seven members, six of them honest, each told another set of three; with `claims` > 1 first all the others' sets.

    Six sets {0, 6, x}: everybody is told that 0 survived, and each other one by at most two that it did. So four and
    the colluder give shares of each one's mask key, and all of the self mask of 0: without signatures over one set,
    that is x0. With fewer members there are not enough such sets.
    """

    def play(client_class: type[ClientProtocol]) -> Tried:
        world = World(_allow(7), client_class)
        explorer = Explorer(world, uniform=True)
        set_up = next(explorer.set_ups(roots(world), cohorts=[world.everybody]))
        own: dict[int, Set] = {member: tuple(sorted((0, 6, member or 1))) for member in world.honest}
        nodes = dict(set_up.nodes)
        if claims > 1:  # each first signs what the others are told
            strategy = {
                member: (*(one for one in dict.fromkeys(own.values()) if one != told), told)
                for member, told in own.items()
            }
            nodes = explorer.signed(nodes, strategy)
        else:
            nodes = explorer.told(nodes, {member: (told,) for member, told in own.items()})
        leak = explorer.reader.leak(list(nodes.values()))
        return Tried(1, None if leak is None else _confirmed(explorer, leak))

    return play


def _asked(policy: Policy = _DEFAULT_POLICY, **more: Any) -> Callable[[type[ClientProtocol]], Tried]:
    return lambda client_class: histories.asked_too_often(
        Setting("lockstep", 3, steps=2, policy=policy, **more), client_class
    )


def _on(attack: Callable[[World], Tried], setting: Setting) -> Callable[[type[ClientProtocol]], Tried]:
    return lambda client_class: attack(World(setting, client_class))


def _epochs(epochs: int) -> Callable[[type[ClientProtocol]], Tried]:
    return lambda client_class: Histories(World(Setting("lockstep", 3), client_class), epochs).search()


ONE_SET, ERASED, AGREED = "_rule_one_survivor_set", "_rule_erase_answered", "_rule_signed_survivors"
BLOCKS, ENOUGH, MEMBERS = "_rule_whole_blocks", "_rule_enough_survivors", "_rule_members"
KNOWN, OTHERS = "_rule_known_epoch", "_rule_others_vote"
SIGNED_KEYS, SIGNED_SEAL = "_rule_signed_advertisement", "_rule_signed_seal"
_MANY_WRONG = 1000
_PAIR = Setting("lockstep", 3, playing=0)
_FOUR = _allow(4, least=4)

GAMES: tuple[Game, ...] = (
    Game((THRESHOLD_RULE,), "steps, n = 4, threshold 2", _steps(_allow(4, threshold=2))),
    Game((BLOCKS,), "steps, n = 6, two blocks, all told the same", _steps(Setting("resilient", 6), uniform=True)),
    Game((MEMBERS,), "set-ups, lockstep, n = 3", _steps(Setting("lockstep", 3))),
    Game((AGREED,), "six clients, six sets", scattered(1)),
    Game((ONE_SET,), "six clients, six sets one after the other", scattered(2)),
    Game((ONE_SET, ERASED), "steps, n = 4, two sets to each client", _steps(_allow(4), claims=2)),
    Game((ONE_SET,), "steps, n = 4, two sets to each client", _steps(_allow(4), claims=2), behind=ERASED),
    Game((ERASED,), "steps, n = 4, two sets to each client", _steps(_allow(4), claims=2), behind=ONE_SET),
    Game((ENOUGH, BLOCKS), "steps, n = 4, least 4", _steps(_FOUR)),
    Game((ENOUGH,), "steps, n = 4, least 4", _steps(_FOUR), behind=BLOCKS),
    Game((BLOCKS,), "steps, n = 4, least 4", _steps(_FOUR), behind=ENOUGH),
    Game((SIGNED_KEYS, SIGNED_SEAL), "everybody else is played", _on(histories.impersonated, _PAIR)),
    Game((SIGNED_KEYS,), "everybody else is played", _on(histories.impersonated, _PAIR), behind=SIGNED_SEAL),
    Game((SIGNED_SEAL,), "everybody else is played", _on(histories.impersonated, _PAIR), behind=SIGNED_KEYS),
    Game((SIGNED_SEAL,), "garbled seals", _on(histories.framed, _PAIR)),
    Game(
        ("_rule_distinct_keys",),
        "a colluder repeats a member's mask keys",
        _on(histories.copied_keys, _allow(4)),
        behind="the pair's names in each mask key",
    ),
    Game(("_rule_true_sum",), "lies without a colluder", _on(histories.lies, _PAIR)),
    Game((OTHERS,), "false records", _on(histories.false_records, _allow(4, playing=0))),
    Game((KNOWN,), "rewritten records", _on(histories.rewritten_records, Setting("lockstep", 3, steps=2))),
    Game((KNOWN, OTHERS), "false records", _on(histories.false_records, Setting("lockstep", 3, steps=2))),
    Game((KNOWN,), "false records", _on(histories.false_records, Setting("lockstep", 3, steps=2)), behind=OTHERS),
    Game(("_rule_certificate",), "scenes of one epoch", _epochs(1)),
    Game(("_rule_bound_by_vote",), "scenes of two epochs", _epochs(2)),
    Game(("_rule_same_head",), "an offer at an old head", _on(histories.asked_at_old_heads, Setting("lockstep", 3))),
    Game(("_rule_fresh_epoch",), "asked again and again", _asked()),
    Game(("_rule_fresh_epoch",), "replays", _on(histories.replays, Setting("lockstep", 3))),
    Game(("_rule_attempts",), "asked again and again", _asked(Policy(most_wrong_sums=_MANY_WRONG), attempts=5)),
    Game(("_rule_wrong_sums",), "asked again and again", _asked()),
    Game(
        ("_rule_budget",),
        "asked again and again",
        _asked(Policy(most_total_steps=5, most_wrong_sums=_MANY_WRONG)),
    ),
    Game(
        ("_rule_privacy_budget",),
        "asked again and again",
        _asked(Policy(most_rho=0.11, most_wrong_sums=_MANY_WRONG), noised=True),
    ),
    Game(("_rule_policy",), "plans beyond the policy", histories.refused_by_policy),
    Game(("_rule_neighbours_survive",), "every set of survivors on a ring of eight", rings.named_survivors),
    Game(("_rule_committed_start",), "a start share changed on a ring", rings.changed_starts),
)


# -- all of it ---------------------------------------------


@dataclass(frozen=True)
class Findings:
    """Everything that was checked."""

    settings: tuple[Row, ...]
    counts: tuple[Count, ...]
    courses: tuple[Course, ...]
    defences: tuple[Defence, ...]

    @property
    def as_promised(self) -> bool:
        """Whether all is as the protocol says."""
        return all(
            row.as_promised for part in (self.settings, self.counts, self.courses, self.defences) for row in part
        )

    def as_json(self) -> dict[str, Any]:
        """The findings as plain values."""
        parts: dict[str, Sequence[Row | Count | Course | Defence]] = {
            "settings": self.settings,
            "without_cryptography": self.counts,
            "courses": self.courses,
            "defences": self.defences,
        }
        rows = {name: [{**asdict(row), "as_promised": row.as_promised} for row in part] for name, part in parts.items()}
        return {"as_promised": self.as_promised, **rows}


def _counts_of(members: Iterable[int]) -> list[tuple[int, int, bool]]:
    """(n, c, whether clients may be shown different members, which takes too long with six)."""
    most = max(members)
    return [(n, c, n <= EXHAUSTIVE_MEMBERS) for n in range(3, max(6, most) + 1) for c in range(1, n - 1)]


def check(members: Iterable[int], advance: Callable[[], None] = lambda: None) -> Findings:
    """Check everything, settings for these numbers of members.

    Args:
        members: each 3 to 6.
        advance: called after each of the `work(members)` parts.
    """
    members = list(members)
    settings, counts, courses, defences = [], [], [], []
    for row in rows_of(members):
        settings.append(check_row(row))
        advance()
    for n, c, split in _counts_of(members):
        counts.append(count(n, c, split=split))
        advance()
    for course in COURSES:
        courses.append(check_course(*course))
        advance()
    for game in GAMES:
        defences.append(game.judge())
        advance()
    return Findings(tuple(settings), tuple(counts), tuple(courses), tuple(defences))


def work(members: Iterable[int]) -> int:
    """How many parts `check` has."""
    members = list(members)
    return len(rows_of(members)) + len(_counts_of(members)) + len(COURSES) + len(GAMES)


# -- what people read ---------------------------------------------

SETTING_COLUMNS = ("n", "c", "least", "steps", "set-ups", "strategies", "mode", "sums over", "found")
COUNT_COLUMNS = ("n", "c", "strategies", "safe from threshold", "2 threshold > n + c from", "members told differently")
COURSE_COLUMNS = ("tried", "how much", "epochs learnt", "found")
DEFENCE_COLUMNS = ("off", "attack", "found", "the server, or a client")


def setting_cells(row: Row) -> tuple[str, ...]:
    """A setting as text, in the order of `SETTING_COLUMNS`."""
    numbers = (row.members, row.colluders, row.least, row.steps, row.set_ups, row.strategies)
    over = "whole blocks" if row.losses == "blocks" else "any sets"
    return (
        *(f"{number:,}" for number in numbers),
        row.mode,
        over,
        f"{row.found}: NOT AS PROMISED" if row.found else "safe",
    )


def count_cells(row: Count) -> tuple[str, ...]:
    """A count as text, in the order of `COUNT_COLUMNS`."""
    apart = "" if row.members > EXHAUSTIVE_MEMBERS else "leak" if row.told_apart else "safe"
    rule = str(row.rule) if row.as_promised else f"{row.rule}: NOT AS PROMISED"
    return (str(row.members), str(row.colluders), f"{row.strategies:,}", str(row.safe_from), rule, apart)


def course_cells(row: Course) -> tuple[str, ...]:
    """A course of events as text, in the order of `COURSE_COLUMNS`."""
    return (row.what, f"{row.count:,}", f"{row.learnt:,}" if row.learnt else "", row.found or "nothing")


def defence_cells(row: Defence) -> tuple[str, ...]:
    """A defence as text, in the order of `DEFENCE_COLUMNS`."""
    words = row.told or f"nothing is found: {row.behind} is behind it"
    found = row.promise or "safe"
    return ("\n".join(row.off), row.attack, found if row.as_promised else f"{found}: NOT AS PROMISED", words)


def tables(findings: Findings) -> tuple[Table, ...]:
    """All tables, for a terminal; the first three with seconds."""
    settings = _table("Every strategy of a malicious server, against the real client machines", SETTING_COLUMNS, 6)
    for row in findings.settings:
        settings.add_row(*setting_cells(row), f"{row.seconds:.1f}", style="" if row.as_promised else "red")
    counts = _table("Every strategy in a resilient step, without cryptography", COUNT_COLUMNS, 6)
    for counted in findings.counts:
        counts.add_row(*count_cells(counted), f"{counted.seconds:.1f}", style="" if counted.as_promised else "red")
    courses = _table("Courses of events, against the real client machines", COURSE_COLUMNS, 0)
    for course in findings.courses:
        courses.add_row(*course_cells(course), f"{course.seconds:.1f}", style="" if course.as_promised else "red")
    defences = Table(title="With a defence off")
    for column in DEFENCE_COLUMNS:
        defences.add_column(column, no_wrap=column == "off")
    for defence in findings.defences:
        defences.add_row(*defence_cells(defence), style="" if defence.as_promised else "red")
    return settings, counts, courses, defences


def _table(title: str, columns: Sequence[str], right: int) -> Table:
    table = Table(title=title)
    for place, column in enumerate([*columns, "seconds"]):
        table.add_column(column, justify="right" if place < right or column in ("seconds", "how much") else "left")
    return table
