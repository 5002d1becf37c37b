"""Who was invited to the newest epoch, and who refuses one invitation after the other.

What a member refuses stops an epoch, and three invitations refused in a row stop more than one: such a member is left
out until it is started again, so that others' attempts are not used up on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from codream_protocols.errors import AggregationFailed, AttemptsUsed, CohortRefused, WrongSum
from codream_protocols.messages import Refusal
from codream_protocols.server import ServerProtocol
from codream_server.events import printable

REFUSALS_IN_A_ROW = 3
_REMEDIES = {
    AttemptsUsed.code: "the administrator must look, and sign a charter that follows this one",
    WrongSum.code: "find out who changed the sums; then raise most_wrong_sums in [policy] of the clients",
}


class Invitations:
    """Of whoever was invited: who has not answered yet, and how many were refused in a row, with which code."""

    def __init__(self) -> None:
        self._invited: tuple[int, ...] = ()
        self._asked: set[int] = set()  # of these, who has not answered yet
        self._refusing: dict[int, tuple[str, int]] = {}  # code and number of invitations refused in a row
        self._refused_for = ""
        self.passed_over: set[int] = set()  # who did not answer in an epoch that is not certified

    def sent(self, cohort: tuple[int, ...]) -> None:
        """To a new epoch."""
        self._invited, self._asked = cohort, set(cohort)

    def accepted(self, member: int) -> None:
        """It takes part."""
        self._asked.discard(member)
        self.begin_anew(member)

    def begin_anew(self, member: int) -> None:
        """Started again, perhaps with what was wrong put right."""
        self._refusing.pop(member, None)

    def all_begin_anew(self) -> None:
        """An epoch is certified: what was refused may have rested on the history before."""
        self._refusing.clear()
        self.passed_over.clear()

    def refused(self, member: int, message: Refusal) -> int:
        """Count a refusal; returns how many invitations in a row it makes, 0 if it is of something else."""
        if member not in self._asked:
            return 0
        self._asked.discard(member)
        code, count = self._refusing.get(member, (message.code, 0))
        in_a_row = count + 1 if code == message.code else 1
        self._refusing[member] = message.code, in_a_row
        self._refused_for = printable(message.found)
        return in_a_row

    @property
    def held(self) -> set[int]:
        """Who refuses every invitation, until it is started again: others' attempts are not used up on it."""
        return {member for member, (_, count) in self._refusing.items() if count >= REFUSALS_IN_A_ROW}

    def held_for(self, members: Iterable[int]) -> dict[int, str]:
        """Those of them that are held, with the code of what they refuse."""
        held = self.held
        return {member: self._refusing[member][0] for member in members if member in held}

    def cohort(self, protocol: ServerProtocol) -> tuple[int, ...]:
        """Whom to invite next: without those that are held and, if it goes without them, that were passed over."""
        cohort, held, charter = protocol.cohort(), self.held, protocol.charter
        for away in (held | self.passed_over, held):
            if not away & set(cohort):
                return cohort
            chosen = charter.whole_blocks(set(cohort) - away)
            with contextlib.suppress(CohortRefused):
                charter.check_summed(chosen)
                return chosen
        return ()

    def failure(self, code: str) -> AggregationFailed | None:
        """What ends the federation if all who were invited are held for this one code."""
        held = self.held_for(self._invited)
        if {held.get(member, "") for member in self._invited} != {code}:
            return None
        return AggregationFailed(
            f"{REFUSALS_IN_A_ROW} invitations in a row refused by everybody ({code}: {self._refused_for})",
            "invitations that the clients' charter and policies permit",
            _REMEDIES.get(code, "the clients' logs say what each of them refuses"),
        )
