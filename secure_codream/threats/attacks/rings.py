"""A server that plays neighbourhoods off against each other, where members have but some neighbours (decision 14).

The rings are of a few members, so that an attack takes a moment; what stands against it holds on all of them.
"""

from __future__ import annotations

from codream_protocols import hybrid
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.messages import Starts
from secure_codream.simulation.rings import small_rings, spread
from secure_codream.simulation.wire import Federation
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import Vector, counted, recovered
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.rings import alone, ring_of

VICTIM = 5
MEMBERS = 20
NEIGHBOURS, THRESHOLD = 6, 4
APART = (4, 5, 9)


def on_a_ring(laboratory: Laboratory, defences: Defences) -> Federation:
    """A federation of its own: a cohort of the user's is hardly ever of more than 200."""
    return laboratory.federation(defences, members=MEMBERS, mode="resilient", losses="allow")


class NeighboursCalledDropped(Attack):
    """All neighbours of one member dropped, the server says; they are alive, and answer."""

    name = "neighbours-called-dropped"
    adversary = "malicious server"
    goal = "Have the mask keys of all neighbours of one member opened beside its self mask, and read its input."
    paper = "rule G1 of decision 14; graph: Bell et al., CCS 2020"
    promises = ("P1",)
    defences = ("_rule_neighbours_survive",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Announce everybody but the neighbours, collect all answers, take the victim's masks off."""
        with small_rings(NEIGHBOURS, THRESHOLD):
            federation = on_a_ring(laboratory, defences).masked()
            near = ring_of(federation).of(VICTIM)

            def attempt() -> tuple[Vector, Vector]:
                rest = tuple(member for member in federation.everybody if member not in near)
                told = dict.fromkeys(federation.everybody, rest)
                return alone(federation, VICTIM, told), federation.vectors[0, VICTIM]

            return recovered(attempt)


class NeighbourhoodTold(Attack):
    """One set of survivors for the victim's neighbours, another one for all others; each has enough neighbours."""

    name = "neighbourhood-told-another-set"
    adversary = "malicious server"
    goal = "Get a member's self mask from its neighbours, and their mask keys from others that were told another set."
    paper = "rule G2 of decision 14"
    promises = ("P1",)
    defences = ("_rule_signed_survivors",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """On a graph whose neighbours are strangers: the neighbours are told everybody, the others all but those."""
        with small_rings(NEIGHBOURS, THRESHOLD, spread(APART)):
            federation = on_a_ring(laboratory, defences).masked()
            near, everybody = ring_of(federation).of(VICTIM), federation.everybody

            def attempt() -> tuple[Vector, Vector]:
                rest = tuple(member for member in everybody if member not in near and member != VICTIM)
                told = {member: everybody if member in near else rest for member in everybody}
                return alone(federation, VICTIM, told), federation.vectors[0, VICTIM]

            return recovered(attempt)


class StartOfTheServersOwn(Attack):
    """On a ring the server hands on all start shares; it puts in one that nobody has committed to."""

    name = "start-handed-on-changed"
    adversary = "malicious server"
    goal = "Choose where the trajectory starts, so that clients are asked about points of the server's choice."
    promises = ("P4",)
    defences = ("_rule_committed_start",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Try shares of one member until the start seed begins with a zero byte, and hand these on."""

        def attempt() -> bool:
            with small_rings(NEIGHBOURS, THRESHOLD):
                federation = on_a_ring(laboratory, defences)
                federation.set_up(lost={(member, Starts) for member in federation.everybody})
                ring, epoch = ring_of(federation), federation.clients[VICTIM]._epoch
                chance, known = laboratory.random(self.name), _opened_starts(federation)
                while True:
                    start = chance.randbytes(KEY_BYTES) + known[KEY_BYTES:]
                    if epoch and hybrid.start_seed(epoch.transcript, ring.members, start)[0] == 0:
                        break
                federation.tell(VICTIM, Starts(federation.plan.digest, start))
                return epoch.public is not None and epoch.public.start == start

        return counted({"a start seed with a first byte of zero": attempt}, what="chosen starts")


def _opened_starts(federation: Federation) -> bytes:
    """All members' start shares, as the server was told them."""
    return next(item.message.shares for item in federation.sent if isinstance(item.message, Starts))


ATTACKS: tuple[Attack, ...] = (NeighboursCalledDropped(), NeighbourhoodTold(), StartOfTheServersOwn())
