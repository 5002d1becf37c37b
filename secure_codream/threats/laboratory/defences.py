"""Which defences stand while an attack runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Defences:
    """Which defences stand: all but those in `off`.

    A name is a rule of the client (`_rule_...`), or a switch of `switches.py` or of the attack's own module.
    """

    off: frozenset[str] = frozenset()

    def stands(self, name: str) -> bool:
        """Whether this defence is on."""
        return name not in self.off

    def without(self, *names: str) -> Defences:
        """The same with these off."""
        return Defences(self.off | frozenset(names))


ALL = Defences()


class Inapplicable(Exception):
    """The settings leave no room for this attack: even without its defence it could not be played."""
