"""`secure-codream check`: where the model checker finds a leak, and whether that is where the protocol says so.

Two tables. Settings: for each number of members, colluders and each threshold, with the threshold itself as the
smallest number of survivors and, where the rule 2 * threshold > n + c holds, with every larger one. Defences: a setting
in which the whole protocol is safe, and what a server opens there when one defence is off. A defence with a second one
behind it leaks only together with that; then the rows say which one it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from secure_codream.threats.model_checker import Checker, safe, told
from secure_codream.threats.switches import without

BY_SYMMETRY_FROM = 6  # members; below, every single strategy is tried
THRESHOLD_RULE = "threshold rule"


@dataclass(frozen=True)
class Setting:
    """What was found with n members, c colluders and a threshold (minima: all that were tried).

    Attributes:
        strategies: how many were tried; up to the first leak, if there is one.
        most_sums: that one strategy opens.
        fewest_inputs: honest inputs in the smallest sum that one opens.
        strategy: the first that leaks, in words; empty if none does.
    """

    members: int
    colluders: int
    threshold: int
    strategies: int
    most_sums: int
    fewest_inputs: int
    strategy: str

    @property
    def safe(self) -> bool:
        """Whether no strategy leaks."""
        return not self.strategy

    @property
    def as_promised(self) -> bool:
        """Whether that is what the threshold rule says."""
        return self.safe == safe(self.members, self.colluders, self.threshold)


@dataclass(frozen=True)
class Game:
    """A setting in which some defences are off.

    Attributes:
        off: names of the client's rules, or `THRESHOLD_RULE`.
        least: the smallest number of survivors.
        claims: survivor sets that the server claims to one member.
        behind: the defence that prevents the leak when only these are off; empty if there is none.
    """

    off: tuple[str, ...]
    members: int
    colluders: int
    threshold: int
    least: int
    claims: int = 1
    behind: str = ""

    def play(self) -> Defence:
        """Try every strategy, with these defences off and, if that is a plan that the protocol takes, on."""
        unsafe = THRESHOLD_RULE in self.off
        arguments = (self.members, self.colluders, self.threshold, self.least)
        rules = without(*(name for name in self.off if name != THRESHOLD_RULE))
        checker = Checker(*arguments, rules, self.claims, unsafe=unsafe, by_symmetry=True)
        leak = checker.search()
        whole = unsafe or Checker(*arguments, claims=self.claims, by_symmetry=True).search() is None
        return Defence(self, whole, "" if leak is None else told(leak), leak is None or checker.confirm(leak))


@dataclass(frozen=True)
class Defence:
    """What a game brought.

    Attributes:
        safe_with: whether no strategy leaks when nothing is off.
        strategy: the first that leaks without them, in words; empty if none does.
        confirmed: whether that strategy, run for real, opens the plain sums.
    """

    game: Game
    safe_with: bool
    strategy: str
    confirmed: bool

    @property
    def as_promised(self) -> bool:
        """Whether it leaks without, and not with; or does not leak at all where another defence is behind."""
        return self.safe_with and self.confirmed and bool(self.strategy) != bool(self.game.behind)


ONE_SET, ERASED = "_rule_one_survivor_set", "_rule_erase_answered"

GAMES = (
    Game((THRESHOLD_RULE,), 4, 0, 2, 2),
    Game((THRESHOLD_RULE,), 3, 1, 2, 2),
    Game(("_rule_signed_survivors",), 5, 0, 3, 3),
    Game(("_rule_enough_survivors",), 4, 1, 3, 4),
    Game((ONE_SET, ERASED), 3, 0, 2, 2, claims=2),
    Game((ONE_SET,), 3, 0, 2, 2, claims=2, behind=ERASED),
    Game((ERASED,), 3, 0, 2, 2, claims=2, behind=ONE_SET),
    Game(("_rule_is_survivor",), 5, 0, 3, 3, behind=THRESHOLD_RULE),
)


@dataclass(frozen=True)
class Findings:
    """Everything that was checked."""

    settings: tuple[Setting, ...]
    defences: tuple[Defence, ...]

    @property
    def as_promised(self) -> bool:
        """Whether all is as the protocol says."""
        return all(row.as_promised for row in self.settings) and all(row.as_promised for row in self.defences)

    def as_json(self) -> dict[str, Any]:
        """The findings as plain values."""
        return {
            "as_promised": self.as_promised,
            "settings": [{**asdict(row), "safe": row.safe, "as_promised": row.as_promised} for row in self.settings],
            "defences": [{**asdict(row), "as_promised": row.as_promised} for row in self.defences],
        }


def settings_of(members: Iterable[int]) -> list[tuple[int, int, int]]:
    """(n, c, threshold): every number of colluders that leaves two honest members, every threshold."""
    return [
        (count, colluders, threshold)
        for count in members
        for colluders in range(count - 1)
        for threshold in range(1, count + 1)
    ]


def check_setting(members: int, colluders: int, threshold: int) -> Setting:
    """Try the strategies of one setting: with the least admissible minimum, and where that is safe with every other."""
    strategies = most = fewest = 0
    for least in range(threshold, members + 1):
        checker = Checker(members, colluders, threshold, least, unsafe=True, by_symmetry=members >= BY_SYMMETRY_FROM)
        found = checker.run()
        strategies += found.strategies
        most = max(most, found.most_sums)
        fewest = min(fewest or found.fewest_inputs, found.fewest_inputs) if found.fewest_inputs else fewest
        if found.leak is not None:
            return Setting(members, colluders, threshold, strategies, most, fewest, told(found.leak))
    return Setting(members, colluders, threshold, strategies, most, fewest, "")


def check(members: Iterable[int], advance: Callable[[], None] = lambda: None) -> Findings:
    """Check all settings of these numbers of members, and all defences.

    Args:
        members: each 3 or more; the time grows fast (a minute with 6).
        advance: called after each of the `work(members)` parts.
    """
    settings, defences = [], []
    for setting in settings_of(members):
        settings.append(check_setting(*setting))
        advance()
    for game in GAMES:
        defences.append(game.play())
        advance()
    return Findings(tuple(settings), tuple(defences))


def work(members: Iterable[int]) -> int:
    """How many parts `check` has."""
    return len(settings_of(members)) + len(GAMES)


# -- what people read ---------------------------------------------

SETTING_COLUMNS = (
    "n",
    "c",
    "threshold",
    "strategies",
    "sums at most",
    "inputs at least",
    "found",
    "2 threshold > n + c",
)
DEFENCE_COLUMNS = ("off", "n", "c", "threshold", "least", "found", "the server")


def setting_cells(row: Setting) -> tuple[str, ...]:
    """A setting as text, in the order of `SETTING_COLUMNS`."""
    found = "safe" if row.safe else "leak"
    rule = "yes" if safe(row.members, row.colluders, row.threshold) else "no"
    numbers = (row.members, row.colluders, row.threshold, row.strategies, row.most_sums, row.fewest_inputs)
    return (*(f"{number:,}" for number in numbers), found, rule if row.as_promised else f"{rule}: NOT AS PROMISED")


def defence_cells(row: Defence) -> tuple[str, ...]:
    """A defence as text, in the order of `DEFENCE_COLUMNS`."""
    game = row.game
    words = row.strategy or f"no strategy leaks: {game.behind} is behind it"
    found = "leak" if row.strategy else "safe"
    numbers = (game.members, game.colluders, game.threshold, game.least)
    return (
        "\n".join(game.off),
        *map(str, numbers),
        found if row.as_promised else f"{found}: NOT AS PROMISED",
        words,
    )


def tables(findings: Findings) -> tuple[Table, Table]:
    """Both tables, for a terminal."""
    settings = Table(title="Every strategy of a malicious server, against the real client machines")
    for column in SETTING_COLUMNS:
        settings.add_column(column, justify="right")
    for setting in findings.settings:
        settings.add_row(*setting_cells(setting), style="" if setting.as_promised else "red")
    defences = Table(title="With a defence off")
    for column in DEFENCE_COLUMNS:
        defences.add_column(column, no_wrap=column == "off")
    for defence in findings.defences:
        defences.add_row(*defence_cells(defence), style="" if defence.as_promised else "red")
    return settings, defences
