"""A server that cheats with what it broadcasts: different states, a second one, an endless session, bad numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec
import numpy as np

from codream_protocols.client import Compute, State
from codream_protocols.errors import ProtocolError
from codream_protocols.messages import Broadcast, Farewell, Survivors
from codream_protocols.packing import unpack
from codream_protocols.plan import Policy
from codream_protocols.server import ServerEpoch
from codream_protocols.vectors import decode_vector
from secure_codream.threats import adversary
from secure_codream.threats.adversary import announce, rebuild, said
from secure_codream.threats.attack import Attack, Defences, Evidence
from secure_codream.threats.dropouts import VICTIM, all_but
from secure_codream.threats.enrolment import begin, noised
from secure_codream.threats.evidence import Vector, counted, recovered
from secure_codream.threats.federation import STATE, Federation, Stuck, packet
from secure_codream.threats.laboratory import Laboratory

ZEROS = np.zeros_like(STATE)


class DifferentDreams(Attack):
    """Model inconsistency: the victim alone sees a state that asks for an answer."""

    name = "different-dreams"
    adversary = "malicious server"
    goal = "Show all others a state whose update is zero, so that the sum is the victim's update."
    paper = "Pasquini, Francati, Ateniese, CCS 2022"
    promises = ("P4",)
    defences = ("broadcast-binding",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Broadcast two states, take all self masks off, and read the decoded sum."""
        federation = laboratory.federation(defences)
        federation.set_up()
        everyone = all_but(federation)
        values = laboratory.generator(self.name).uniform(-1, 1, 20)
        federation.input_of = lambda member, compute: {"dream": values if compute.arrays[0].any() else np.zeros(20)}
        digests = {}
        for member in everyone:
            state = STATE if member == VICTIM else ZEROS
            message = Broadcast(federation.plan.digest, 0, (1.0,), (STATE.shape,))
            digests[member] = message.digest((state.tobytes(),))
            federation.deliver(packet(member, message, (state.tobytes(),), to_server=False))
        secrets = rebuild(federation, {member: announce(federation, member, everyone) for member in everyone})
        total = adversary.ring_sum(federation, (adversary.masked_input(federation, 0, one) for one in everyone))
        for member in everyone:
            adversary.take_off_self_mask(federation, total, secrets[member], 0, digests[member])
        total = adversary.reduce(federation, total)
        guess = decode_vector(federation.plan, 0, (1.0,), total, len(everyone))["dream"]
        off = np.abs(guess - values)
        rounding = len(everyone) * 2 / ((1 << federation.plan.value_bits) - 1)  # at most a step of each input
        share = float(np.mean(off < max(0.01, rounding)))
        return Evidence(
            measure="coordinates of the victim's update read to within rounding or 1 % of the clip, share",
            value=share,
            success=0.5,
            learned=f"{share:.0%} of the victim's update; half the coordinates are off by {np.median(off):.2g} clips",
        )


class SecondBroadcast(Attack):
    """Two states for one step."""

    name = "second-broadcast"
    adversary = "malicious server"
    goal = "Have two inputs masked with the same keys: their difference, one of them foreseeable, is the other."
    paper = "Bonawitz et al., CCS 2017, section 4 (one-time use of masks)"
    promises = ("P3",)
    defences = ("_rule_one_broadcast", "one-mask-a-step", "broadcast-binding")

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Broadcast a state, then one whose update the server knows; subtract the answers."""

        def attempt() -> tuple[Vector, Vector]:
            federation = laboratory.federation(defences)
            values = laboratory.generator(self.name).uniform(-1, 1, 20)
            federation.input_of = lambda member, compute: {
                "dream": values if compute.arrays[0].any() else np.full(20, -compute.clips[0])
            }  # the clip's lower end is encoded as zero
            federation.masked()
            first, truth = adversary.masked_input(federation, 0, VICTIM), federation.vectors[0, VICTIM]
            message = Broadcast(federation.plan.digest, 0, (1.0,), (STATE.shape,))
            effects = federation.tell(VICTIM, message, (ZEROS.tobytes(),))
            if isinstance(effects[0], Compute):
                effects = federation.provide(VICTIM, effects[0])
            second = unpack(effects[0].frames[0], len(first), federation.plan.modulus_bits)
            return adversary.reduce(federation, first - second), truth

        return recovered(attempt)


class EndlessSession(Attack):
    """Ever new epochs, each within the policy."""

    name = "endless-session"
    adversary = "malicious server"
    goal = "Keep clients answering for ever, so that many sums together tell what one does not."
    promises = ("P6",)
    defences = ("_rule_budget",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Five epochs of three steps, where the policy allows seven steps in all."""
        allowed = 7
        cohort = laboratory.cohort
        policy = Policy(least_cohort=2, least_survivors=2, colluders=0, tasks={"update": 1.0}, most_total_steps=allowed)
        federation = laboratory.federation(defences, policy=policy, least_survivors=cohort.least_survivors, steps=3)
        answered = 0
        for epoch in range(5):
            federation.plan = msgspec.structs.replace(federation.plan, epoch=epoch)
            federation.server = ServerEpoch(federation.plan, federation.roster)
            if not federation.set_up():
                break
            while federation.server.phase.value == "ready":
                answered += federation.step() is not None
        refused = [error for member, error in federation.refusals if member == VICTIM]
        return Evidence(
            measure=f"steps answered beyond the {allowed} that the policy allows, number",
            value=float(max(0, answered - allowed)),
            success=0.0,
            learned=f"{answered} sums where the policy allows {allowed}",
            refusal=f"{type(refused[0]).__name__}: {refused[0]}" if refused else "",
        )


class OverspentBudget(Attack):
    """Ever new epochs of noised sums."""

    name = "overspent-privacy-budget"
    adversary = "malicious server"
    goal = "Keep clients adding to noised sums until the noise averages out, beyond the privacy budget of their policy."
    paper = "Bun and Steinke, TCC 2016 (composition of zCDP)"
    promises = ("P15", "P6")
    defences = ("_rule_privacy_budget",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Plan five epochs of one step, where the budget is for two and a half."""
        with_noise = noised(laboratory, 1.0, laboratory.federation().plan.least_honest)
        plan = laboratory.federation(policy=None, steps=1, **with_noise).plan
        budget = 2.5 * plan.total_rho
        policy = Policy(least_cohort=2, least_survivors=2, colluders=0, tasks={"update": 1.0}, most_rho=budget)
        federation = laboratory.federation(defences, policy=policy, plan=plan)
        for epoch in range(5):
            federation.plan = msgspec.structs.replace(plan, epoch=epoch)
            federation.server = ServerEpoch(federation.plan, federation.roster)
            if not federation.set_up():
                break
            begin(federation, all_but(federation))
        spent = federation.clients[VICTIM].spent_rho
        refused = [error for member, error in federation.refusals if member == VICTIM]
        return Evidence(
            measure="zCDP spent over the policy's budget, ratio",
            value=spent / budget,
            success=1.0,
            learned=f"sums that cost the client {spent / budget:.0%} of its budget",
            refusal=f"{type(refused[0]).__name__}: {refused[0]}" if refused else "",
        )


class MalformedBroadcasts(Attack):
    """Broadcasts that do not fit the plan."""

    name = "malformed-broadcasts"
    adversary = "malicious server"
    goal = "Have a client compute on a state with a wrong shape or wild numbers, or with a clip above the plan's."
    promises = ("P8", "P6")
    defences = ("broadcast-checks",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Ten broadcasts and two stray messages, each to a client that is ready; it must stay as it was."""

        def attempt(say: Callable[[Federation], object]) -> bool:
            federation = laboratory.federation(defences)
            if not federation.set_up():
                raise Stuck(f"the set-up failed: {federation.failures}")
            client = federation.clients[VICTIM]
            try:
                say(federation)
            except ProtocolError:
                if (client.state, client.answered_steps) != (State.READY, 0):
                    return True
                raise
            return (client.state, client.answered_steps) != (State.READY, 0)

        return counted({how: partial(attempt, say) for how, say in _BAD.items()}, what="bad broadcasts")


def _broadcast(
    step: int = 0,
    clips: tuple[float, ...] = (1.0,),
    shape: tuple[int, ...] = STATE.shape,
    frames: tuple[bytes, ...] = (STATE.tobytes(),),
    plan: bytes | None = None,
) -> Callable[[Federation], object]:
    def say(federation: Federation) -> object:
        message = Broadcast(plan or federation.plan.digest, step, clips, (shape,))
        return federation.clients[VICTIM].receive(message, frames)

    return say


def _survivors_too_early(federation: Federation) -> object:
    return said(federation.tell(VICTIM, Survivors(federation.plan.digest, 0, all_but(federation))))


def _stray_frame(federation: Federation) -> object:
    return federation.clients[VICTIM].receive(Farewell(federation.plan.digest, "over"), (b"frame",))


_BAD: dict[str, Callable[[Federation], object]] = {
    "another plan's": _broadcast(plan=bytes(32)),
    "beyond the last step": _broadcast(step=3),
    "a clip above the plan's": _broadcast(clips=(1.5,)),
    "a clip that is no number": _broadcast(clips=(float("nan"),)),
    "too many clips": _broadcast(clips=(1.0, 1.0)),
    "no frame": _broadcast(frames=()),
    "too many frames": _broadcast(frames=(STATE.tobytes(), b"")),
    "a short frame": _broadcast(frames=(STATE.tobytes()[:-1],)),
    "a huge shape": _broadcast(shape=(1 << 26,) * 4),
    "numbers that are not finite": _broadcast(frames=(np.full_like(STATE, np.inf).tobytes(),)),
    "survivors before the input": _survivors_too_early,
    "a frame behind a message without frames": _stray_frame,
}

ATTACKS: tuple[Attack, ...] = (
    DifferentDreams(),
    SecondBroadcast(),
    EndlessSession(),
    OverspentBudget(),
    MalformedBroadcasts(),
)
