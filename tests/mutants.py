"""Disable each defence in the code, one at a time, and see that its tests and attacks notice: `make mutants`.

A mutant is one exact change to one place that a promise rests on: a rule that lets everything pass, a check that is
left out, a noise that is not added, an erasure or a write that does not happen. The rooms are copied to a temporary
folder, the change is made there, and the tests named for it are run against the copy: at least one must fail, and none
of them on the copy as it is. `finding` names what of the review of version 1 the mutant brings back.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("protocols", "clients", "server", "secure_codream", "tests", "docs", "examples")
P, C, S, U = "protocols/codream_protocols/", "clients/codream_clients/", "server/codream_server/", "secure_codream/"
ATTACKS = "tests/protocols/test_attacks.py"
STEPS = "tests/protocols/test_steps.py"
RINGS = "tests/protocols/test_rings.py"
SECOND_RING = "tests/protocols/test_second_on_a_ring.py"
OFFERS = "tests/protocols/test_offers.py"
KEPT_SECRETS = "tests/protocols/test_kept_secrets.py"
GATE, PRIVATE_GATE = "tests/clients/test_model_gate.py", "tests/clients/test_private_model_gate.py"
RECORD_NOISE, RECORD_SUMS = "tests/protocols/test_record_noise.py", "tests/clients/test_record_sums.py"
DEVICE_MASKS = "tests/clients/test_device_masks.py"
FAILING_DEVICES = "tests/protocols/test_failing_devices.py"
SECONDS = 300


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        name: what is disabled.
        file: where.
        old: exact text that occurs once; or the name of a function whose body is left out, if `new` is None.
        new: what stands in its place; of a function its docstring stays.
        tests: pytest's arguments: the tests that must notice.
        finding: of the review of version 1.
    """

    name: str
    file: str
    old: str
    new: str | None
    tests: tuple[str, ...]
    finding: str = ""


def rule(name: str, tests: str, finding: str = "", file: str = P + "client.py") -> Mutant:
    """A rule that lets everything pass, noticed by the attacks named (pytest's -k) or by the tests given."""
    arguments = tuple(tests.split()) if tests.startswith("tests/") else (ATTACKS, "-k", tests)
    return Mutant(name, file, name, None, arguments, finding)


def text(name: str, file: str, old: str, new: str, *tests: str, finding: str = "") -> Mutant:
    """An exact replacement."""
    return Mutant(name, file, old, new, tests, finding)


MUTANTS = (
    text(
        "what a line brought outlives it",
        C + "connection.py",
        "zmq.RECONNECT_IVL, 100",
        "zmq.IMMEDIATE, 1",
        "tests/clients/test_connection.py",
        "-k",
        "ends_no_process",
    ),
    text(
        "no line is given up while messages wait unread",
        C + "connection.py",
        "socket.setsockopt(zmq.RECONNECT_IVL, 100)",
        "socket.setsockopt(zmq.HEARTBEAT_IVL, 20), socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 60)",
        "tests/clients/test_connection.py",
        "-k",
        "ends_no_process",
    ),
    text(
        "every pass has as many images",
        C + "models/passes.py",
        "size - len(images)",
        "0",
        RECORD_SUMS,
        "-k",
        "as_many_images",
    ),
    text(
        "a judge's passes have as many images",
        C + "privacy/judge.py",
        "filled(images[part], TOGETHER).numpy()",
        "images[part].numpy()",
        "tests/clients/test_noised_judge.py",
        "-k",
        "changes_no_pass",
    ),
    text(
        "no coin says whether there is a judge",
        U + "configuration/assembly.py",
        "if held is not None and (told or len(held)):",
        "if held is not None and len(held):",
        "tests/secure_codream/test_private_federation.py",
        "-k",
        "no_coin_say",
    ),
    text(
        "no coin says what is planned",
        U + "configuration/assembly.py",
        "held_back=settings.held_back > 0",
        "held_back=judge is not None and judge.images > 0",
        "tests/secure_codream/test_private_federation.py",
        "-k",
        "no_coin_say",
    ),
    # masks on a GPU
    text(
        "a device that fails keeps nothing",
        C + "masking/device.py",
        "            vector.forget()\n",
        "",
        DEVICE_MASKS,
        "-k",
        "fails_keeps_nothing",
    ),
    text(
        "numbers are masked a second time where a device fails",
        P + "client.py",
        "        except Exception as error:  # whatever it is\n",
        "        except KeyError as error:\n",
        DEVICE_MASKS,
        "-k",
        "fails_keeps_nothing",
    ),
    text(
        "an epoch whose masks a device has used up is left",
        P + "client.py",
        "            self.abandon()\n            self._accelerator = None",
        "            self._accelerator = None",
        FAILING_DEVICES,
    ),
    text(
        "a device that failed is not asked again",
        P + "client.py",
        "            self._accelerator = None  #",
        "            #",
        FAILING_DEVICES,
    ),
    text(
        "who leaves an epoch says so",
        P + "client.py",
        'return [Send(Refusal(error.code, "a vector", error.allowed, plan)), Ended',
        "return [Ended",
        FAILING_DEVICES,
    ),
    text(
        "a device that may keep keys ends its client",
        P + "client.py",
        "            if isinstance(error, NotErased):\n",
        "            if False:\n",
        FAILING_DEVICES,
    ),
    text(
        "a device that cannot erase says so",
        C + "masking/vector.py",
        "            raise NotErased(f",
        "            raise RuntimeError(f",
        DEVICE_MASKS,
        "-k",
        "cannot_erase",
    ),
    text(
        "a device masks only what it has proven",
        C + "masking/device.py",
        "if not all(self.is_proven(bits, top, kind) for kind in {value.dtype for value in here.values()}):",
        "if False:",
        DEVICE_MASKS,
        "-k",
        "is_not_trusted",
    ),
    text(
        "a device's vector is compared with the processor's",
        C + "masking/device.py",
        "return found == Masked(packing.pack(expected, bits), product, replaced)",
        "return found is not None",
        DEVICE_MASKS,
        "-k",
        "is_not_trusted",
    ),
    text(
        "keys and products are erased from a device",
        C + "masking/vector.py",
        "                secret.zero_()\n",
        "                pass\n",
        DEVICE_MASKS,
        "-k",
        "sums_with_those",
    ),
    text(
        "a device masks the charter's suite alone",
        C + "masking/device.py",
        "plan.aggregation.suite != SUITE or ",
        "",
        DEVICE_MASKS,
        "-k",
        "is_not_for_a_device",
    ),
    text(
        "a device leaves noised vectors to the processor",
        C + "masking/device.py",
        " or spec.noise is not None:",
        ":",
        DEVICE_MASKS,
        "-k",
        "is_not_for_a_device",
    ),
    text(
        "a device's streams go on with another nonce",
        C + "masking/kernels.py",
        "piece, counter = block // PIECE_BLOCKS, block % PIECE_BLOCKS",
        "piece, counter = block * 0, block % PIECE_BLOCKS",
        DEVICE_MASKS,
        "-k",
        "bit_for_bit",
    ),
    text(
        "numbers are looked at before keys are taken",
        C + "masking/device.py",
        "if not all(_fits(block, values[block.name]) for block in spec.blocks):",
        "if False:",
        DEVICE_MASKS,
        "-k",
        "before_any_key",
    ),
    # vectors in pieces
    text(
        "pieces count in order, and where they were asked for",
        P + "parcels.py",
        "if number != self.received or number >= self._ever_asked:",
        "if number < self.received:",
        "tests/server/test_pieces.py",
        "-k",
        "in_order",
    ),
    text(
        "a parcel's name has the sizes in it",
        P + "parcels.py",
        'return digest("parcel", message, b"".join(size.to_bytes(8, "big") for size in sizes))',
        'return digest("parcel", message)',
        "tests/server/test_pieces.py",
        "-k",
        "another_total",
    ),
    text(
        "sizes of a parcel are the plan's",
        S + "inbound.py",
        "        self.check_frames(message, [range(size) for size in sizes])\n",
        "",
        "tests/server/test_pieces.py",
        "-k",
        "other_sizes_than_the_plans",
    ),
    text(
        "who drips stands behind all that wait",
        S + "turns.py",
        "        for who in slow[: max(0, waiting)]:",
        "        for who in slow[:0]:",
        "tests/server/test_pieces.py",
        "-k",
        "drip",
    ),
    text(
        "no turn is held for long while others wait",
        S + "turns.py",
        "min(self._ends[who] + PIECE_SECONDS, self._began[who] + LONGEST)",
        "self._ends[who] + PIECE_SECONDS",
        "tests/server/test_pieces.py",
        "-k",
        "holds_its_turn",
    ),
    text(
        "what nobody waits for any more is let go",
        S + "arrivals.py",
        "in wants.items() if not wanted]:",
        "in wants.items() if False]:",
        "tests/server/test_pieces.py",
        "-k",
        "step_that_is_over",
    ),
    # votes and public features
    text(
        "noise is for all of a client's votes",
        P + "courses/labels.py",
        "return math.sqrt(labels)",
        "return 1.0",
        "tests/secure_codream/test_votes.py",
        "-k",
        "root_of_its_votes",
    ),
    rule("_check_norms", "tests/secure_codream/test_votes.py -k bound_that_is_missing", file=P + "courses/codream.py"),
    text(
        "a record that a front fails at takes no other with it",
        C + "models/passes.py",
        "        if not refusals.of_an_image(error):\n",
        "        if True:\n",
        "tests/clients/test_record_sums.py",
        "-k",
        "front_fails",
    ),
    text(
        "a fixed front stays in eval mode",
        C + "models/fronts.py",
        "        super().train(mode)\n        self.front.eval()",
        "        super().train(mode)",
        "tests/clients/test_fronts.py",
    ),
    # noise of the ring
    text(
        "no-share-of-noise",
        P + "record_noise.py",
        "clamped(total, noise) + discrete_gaussian(noise.variance).sample(len(total), random_bytes)",
        "clamped(total, noise)",
        RECORD_NOISE,
    ),
    text(
        "who sends zeros sends its noise",
        P + "encoding.py",
        "values = {block.name: np.zeros(block.length) for block in spec.blocks}",
        "return np.zeros(spec.words, dtype=word_type(plan.modulus_bits(step))), 0",
        "tests/secure_codream/test_dp_sgd.py",
        "-k",
        "nobody_can_answer",
    ),
    text(
        "clamp-off",
        P + "record_noise.py",
        "return np.clip(total, -noise.largest, noise.largest)",
        "return total",
        RECORD_NOISE,
    ),
    text("rounded-once", P + "record_noise.py", "dtype=np.float64) <= most", "dtype=np.float64) >= 0", RECORD_NOISE),
    text(
        "samples-that-are-fixed",
        C + "privacy/record_sums.py",
        "np.flatnonzero(self._stream.uniform(len(self._images)) < self._rate)",
        "np.arange(len(self._images) * self._rate, dtype=np.int64)",
        RECORD_SUMS,
    ),
    text(
        "a-failing-record-takes-its-batch",
        C + "privacy/record_sums.py",
        "for half in np.array_split(chosen, 2):",
        "for half in ():",
        RECORD_SUMS,
    ),
    text(
        "shares-sized-for-the-roster",
        P + "charter.py",
        "and spec.noise.honest > charter.least_honest",
        "and spec.noise.honest > charter.members",
        RECORD_NOISE,
    ),
    text(
        "others-noise-unasked", P + "charter.py", "if not self.shared_noise and any(", "if False and any(", RECORD_NOISE
    ),
    text(
        "discrete-counted-as-continuous",
        C + "privacy/accounting.py",
        "if any(charge.discrete for charge in charges):",
        "if False:",
        "tests/secure_codream/test_dp_sgd.py",
        "-k",
        "whole_plan",
    ),
    text(
        "a-step-handed-over-unpaid",
        C + "dp_sgd_learner.py",
        "self._charge(charge_of_step(self._course, spec))",
        "pass",
        "tests/secure_codream/test_dp_sgd.py",
        "-k",
        "spent",
    ),
    text(
        "one-direction-too-cheap",
        P + "renyi.py",
        "taken * (taken - 1) * rho",
        "taken * (taken - 1) * rho / 2",
        "tests/protocols/test_renyi.py",
    ),
    # what a client lets itself be asked
    rule("_rule_policy", "charter-below-policy", "F1"),
    rule("_rule_budget", "endless-epochs"),
    rule("_rule_privacy_budget", "overspent"),
    rule("_rule_bound_by_vote", "tests/protocols/test_certificates.py -k goes_on_only_with"),
    rule("_rule_same_head", "offers-that-do-not-fit", "F2"),
    rule("_rule_fresh_epoch", "restarted-client", "F7"),
    rule("_rule_attempts", "starts-as-queries"),
    rule("_rule_wrong_sums", "tests/protocols/test_true_sums.py -k waits_for_a_person"),
    rule("_rule_whole_blocks", "parts-of-blocks", "F5"),
    rule("_rule_members", "parts-of-the-cohort-shown"),
    rule("_rule_signed_advertisement", "substituted-keys"),
    rule("_rule_distinct_keys", "duplicated-keys"),
    rule("_rule_signed_seal", "altered-seals"),
    rule("_rule_one_survivor_set", "two-survivor-sets"),
    rule("_rule_erase_answered", "seized-after-the-answer"),
    rule("_rule_enough_survivors", "survivors-below-minimum or below_the_minimum"),
    rule("_rule_signed_survivors", "skipped-consistency-round"),
    rule("_rule_neighbours_survive", "neighbours-called-dropped"),
    rule("_rule_committed_start", "start-handed-on-changed"),
    text(
        "most sign a set on a ring",
        P + "charter.py",
        "return (len(self.cohort) + self.aggregation.colluders) // 2 + 1",
        "return self.threshold",
        ATTACKS,
        "-k",
        "neighbourhood-told",
    ),
    text(
        "everybody, too, is signed for on a ring",
        P + "client.py",
        "message.members == public.members and epoch.ring is None",
        "message.members == public.members",
        RINGS,
        "-k",
        "everybody_too",
    ),
    text(
        "nobody is taken out of a running sum of all",
        P + "server.py",
        '            if self.charter.aggregation.losses == "allow":\n                return ()\n',
        "",
        RINGS,
        "-k",
        "who_lacks_neighbours",
    ),
    text(
        "on a ring a whole block may be left out",
        P + "server.py",
        "if epoch.ring is None and block != _ALL",
        "if block != _ALL",
        RINGS,
        "-k",
        "block_that_lacks_neighbours",
    ),
    text(
        "secrecy on a ring is counted among who must be shown",
        P + "neighbours.py",
        "shown, bits = members - silent(members)",
        "shown, bits = members",
        SECOND_RING,
        "-k",
        "as_many_neighbours",
    ),
    text(
        "the tag's key on a ring is of the first member's value",
        P + "client.py",
        "epoch.ring.members, values[:1]",
        "epoch.ring.members, values[-1:]",
        SECOND_RING,
        "-k",
        "real_machines",
    ),
    text(
        "another transcript, another ring",
        P + "neighbours.py",
        'digest("ring", transcript, number(member))',
        'digest("ring", number(member))',
        RINGS,
        "-k",
        "another_transcript",
    ),
    text(
        "tries of the ring are paid for",
        P + "neighbours.py",
        "SECURITY_BITS + TRIES_BITS",
        "SECURITY_BITS",
        RINGS,
        "-k",
        "study_asks_for",
    ),
    rule("check_lists", "tests/protocols/test_messages.py -k members_in_its_steps", file=P + "messages.py"),
    text(
        "keys that repeat another's at the server",
        P + "server.py",
        "        epoch.keys.add(message)\n",
        "",
        "tests/protocols/test_set_up.py",
        "-k",
        "repeated_keys",
    ),
    text(
        "a simulation remembers what came of the very same alone",
        "secure_codream/simulation/virtual/remembered.py",
        "key = (what, *(one if isinstance(one, bytes | int) else id(one) for one in on))",
        "key = (what,)",
        "tests/secure_codream/test_simulate.py",
        "-k",
        "very_same",
    ),
    text(
        "lists are bounded by the charter's members",
        P + "messages.py",
        "> members:",
        "> MAX_MEMBERS:",
        "tests/protocols/test_messages.py",
        "-k",
        "more_entries_than_there_are_members",
    ),
    text(
        "members-in-a-records-steps-on-the-network",
        S + "inbound.py",
        "decode_to_server(data, most, members, steps)",
        "decode_to_server(data, most)",
        "tests/server/test_network_input.py",
        "-k",
        "more_members_in_its_steps",
    ),
    text(
        "members-in-a-records-steps-at-a-client",
        C + "runner.py",
        "decode_to_client(data, self._most_bytes, len(self._roster.members), self._most_frames)",
        "decode_to_client(data, self._most_bytes)",
        "tests/clients/test_runner.py",
        "-k",
        "more_members_in_its_steps",
    ),
    rule("_rule_true_sum", "untrue-sums", "F2"),
    rule("_rule_known_epoch", "forged-records"),
    rule("_rule_others_vote", "forged-records"),
    rule("_rule_certificate", "too-few-votes"),
    rule("check_charter", "unsafe-charter", file=P + "charter.py"),
    text(
        "course's end",
        P + "charter.py",
        "if certified >= course.epochs:",
        "if False:",
        "tests/protocols/test_charter.py",
        "-k",
        "after_the_courses_last",
    ),
    text(
        "cuts of blocks",
        P + "charter.py",
        "if len(part) < least and set(part) not in whole]",
        "if False]",
        "tests/protocols/test_charter.py",
        "-k",
        "cuts",
    ),
    text(
        "the most colluders of all charters",
        U + "deployment/blocks_answered.py",
        "least = max(charter.aggregation.colluders, before, self._colluders) + 2",
        "least = charter.aggregation.colluders + 2",
        "tests/secure_codream/test_blocks_answered.py",
    ),
    text(
        "new members are told of cuts",
        U + "deployment/blocks_answered.py",
        "if any(members.intersection(block) and frozenset(block) not in told for block in self._blocks):",
        "if False:",
        "tests/secure_codream/test_blocks_answered.py",
    ),
    text(
        "an ended epoch is written before it is told",
        P + "server.py",
        "        self._journal.running(entry, must=step.number + 1 == plan.steps)\n",
        "",
        "tests/protocols/test_lone_members.py",
    ),
    text(
        "signatures are written before they are shown",
        P + "server.py",
        "            self._journal.running(Agreed(step.number, self._signatures(step).items))\n",
        "",
        "tests/protocols/test_lone_members.py",
        "-k",
        "after_a_loss",
    ),
    text(
        "survivors are written before they are told",
        P + "server.py",
        "self._journal.running(Closed(",
        "(Closed(",
        "tests/protocols/test_lone_members.py",
        "-k",
        "killed_at_any_packet",
    ),
    text(
        "who still computes is named by no reason",
        P + "server.py",
        "members & (self.absent | epoch.gone) - epoch.unnamed",
        "members & (self.absent | epoch.gone)",
        "tests/protocols/test_aggregation.py",
        "-k",
        "named_by_no_reason",
    ),
    text(
        "a late vector is refused by nobody",
        P + "server.py",
        "if member in epoch.gone or self.phase is not Phase.COLLECTING:",
        "if self.phase is not Phase.COLLECTING:\n            raise WrongContext('late', 'in time')\n"
        "        if member in epoch.gone:",
        "tests/protocols/test_aggregation.py",
        "-k",
        "times_nobody",
    ),
    text(
        "files have codes of refusals alone",
        S + "events.py",
        'said_of_a_message = ("found", "allowed") if event["event"] == "refused" else ()',
        "said_of_a_message = ()",
        "tests/secure_codream/test_party_files.py",
        "-k",
        "screen_and_in_no_file",
    ),
    text(
        "a running epoch's file is bounded",
        P + "running.py",
        "if held + length > most_bytes:",
        "if False:",
        "tests/server/test_record_folder.py",
        "-k",
        "larger_than_any",
    ),
    text(
        "delivered before it is on disk",
        S + "record_folder.py",
        "if any(isinstance(one, Delivered) for one in self._entries):",
        "if False:",
        "tests/server/test_record_folder.py",
        "-k",
        "memory_alone",
    ),
    text(
        "seals of another epoch",
        S + "record_folder.py",
        "elif delivered[0][1] != self._seals.count:",
        "elif False:",
        "tests/server/test_record_folder.py",
        "-k",
        "not_those",
    ),
    text(
        "a shelf's room",
        S + "seal_file.py",
        "if place + len(record) > end:",
        "if not end:",
        "tests/server/test_seal_file.py",
    ),
    # keys, masks, commitments
    text(
        "commitment to a value",
        P + "lockstep.py",
        "if hybrid.commit(plan, other, value) != item.commitment or share != item.start_commitment:",
        "if False:",
        ATTACKS,
        "-k",
        "chosen-start",
    ),
    rule(
        "check_start_shares", f"tests/protocols/test_record.py {ATTACKS} {STEPS} -k start", file=P + "advertisements.py"
    ),
    text(
        "KEM secret in a pair's root",
        P + "hybrid.py",
        "return extract_and_expand(agreed + lower + higher, transcript,",
        "return extract_and_expand(agreed, transcript,",
        ATTACKS,
        "-k",
        "recorded-traffic",
    ),
    text(
        "KEM secret in a seal's key",
        P + "hybrid.py",
        "return extract_and_expand(agreed + secret, transcript, info)",
        "return extract_and_expand(agreed, transcript, info)",
        ATTACKS,
        "-k",
        "recorded-traffic",
    ),
    text(
        "chain in a pair's mask key",
        P + "hybrid.py",
        'labelled("pair mask", number(step), chain)',
        'labelled("pair mask", number(step))',
        ATTACKS,
        "-k",
        "different-states or forked_state",
        finding="F2",
    ),
    text(
        "ratchet of a pair's root",
        P + "hybrid.py",
        'return expand(root, labelled("next pair root"))',
        "return root",
        ATTACKS,
        KEPT_SECRETS,
        "-k",
        "seized-before-masking or rebuilt or roots_of_a_step",
    ),
    text(
        "erasure with the epoch",
        P + "client.py",
        '        """Leave the epoch: everything secret that is kept of it is erased. A vote stays binding."""\n',
        "        self._epoch = None\n",
        KEPT_SECRETS,
        "-k",
        "everything_is_gone",
    ),
    # sums and tags
    text(
        "the tag",
        P + "tag.py",
        "return hmac.compare_digest(",
        "return True or hmac.compare_digest(",
        "tests/protocols/test_tag.py",
        "tests/protocols/test_true_sums.py",
    ),
    text(
        "range of a sum",
        P + "encoding.py",
        "if int(part.max()) > survivors * top:",
        "if False:",
        "tests/protocols/test_encoding.py",
        "-k",
        "no_inputs_have",
    ),
    text(
        "numbers that are not finite",
        P + "ring.py",
        "if not math.isfinite(np.dot(scaled, scaled)):",
        "if False:",
        "tests/protocols/test_encoding.py",
        "-k",
        "not_finite",
        finding="F4",
    ),
    text(
        "noise of a failed learner",
        P + "encoding.py",
        "    if spec.noise is not None:\n        scaled",
        "    if spec.noise is not None and any(flat.any() for flat in parts):\n        scaled",
        "tests/protocols/test_encoding.py",
        "-k",
        "failed_learner",
    ),
    text(
        "noise in the ring",
        P + "distributed_noise.py",
        "    noised += discrete_gaussian(noise.variance).sample(len(noised), random_bytes)\n",
        "",
        "tests/protocols/test_distributed_noise.py",
    ),
    text(
        "counts as integers",
        P + "courses/metrics.py",
        'Block(name, 1, MAX_COUNT, "count")',
        "Block(name, 1, 1.0)",
        "tests/protocols/courses",
        finding="F9",
    ),
    text(
        "rounding from the operating system",
        P + "encoding.py",
        "return self._random_bytes(KEY_BYTES)",
        "return bytes(KEY_BYTES)",
        "tests/protocols/test_encoding.py",
        "-k",
        "rounding",
        finding="F10",
    ),
    text(
        "each piece of a mask is of its own stream",
        P + "masks.py",
        "stream(piece, zeros, room)",
        "stream(0, zeros, room)",
        "tests/protocols/test_numbers.py",
        "-k",
        "protocol_fixes",
    ),
    text(
        "each piece is rounded by numbers of its own",
        P + "ring.py",
        "dither(piece.start // _PIECE, ",
        "dither(0, ",
        "tests/protocols/test_encoding.py",
        "-k",
        "rounding",
    ),
    text(
        "as many values as the ring holds of all",
        P + "specs.py",
        "min(ring // clients, ",
        "min(ring // (clients - 1), ",
        "tests/protocols/test_encoding.py",
        "-k",
        "its_own_resolution",
    ),
    text(
        "a resolution of its own counts for the policy",
        P + "charter.py",
        "self.top(step).bit_length() for step in own",
        "0 for step in own",
        "tests/protocols/test_plan.py",
        "-k",
        "counts_for_the_policy",
    ),
    text(
        "each piece is worked on once",
        U + "deployment/cores.py",
        "        left, turn, at_work, raised = iter(range(pieces)), Condition(), 0, list[BaseException]()\n\n"
        "        def numbers() -> Iterator[int]:\n",
        "        turn, at_work, raised = Condition(), 0, list[BaseException]()\n        left = iter(range(0))\n\n"
        "        def numbers() -> Iterator[int]:\n            left = iter(range(pieces))\n",
        "tests/secure_codream/test_cores.py",
    ),
    text(
        "doubles that a tag leaves are the sum",
        P + "tag.py",
        "        room[:] = part\n",
        "        pass\n",
        "tests/protocols/test_tag.py",
        "-k",
        "who_asks_for_doubles",
    ),
    text(
        "a sum is not overwritten while it is checked",
        P + "record.py",
        "return not np.may_share_memory(self.words, self.room)",
        "return True",
        "tests/protocols/test_numbers.py",
        "-k",
        "lies_in_its_frame_or_in_its_room",
    ),
    text(
        "a frame has the size of its vector",
        P + "packing.py",
        "if len(data) != size:",
        "if False:",
        "tests/protocols/test_fuzz.py",
        "-m",
        "not exhaustive",
    ),
    text(
        "what is carried out of the low bits is counted",
        P + "packing.py",
        "        self.carries[piece] += (total < words).view(np.uint8)\n",
        "",
        "tests/protocols/test_numbers.py",
        "-k",
        "add_up_piece_by_piece",
    ),
    text(
        "a part of a word never reaches the next",
        P + "packing.py",
        "self._high = sum(1 << (part + 1) * plane.width - 1 for part in range(plane.parts))",
        "self._high = 0",
        "tests/protocols/test_numbers.py",
        "-k",
        "add_up_piece_by_piece",
    ),
    text(
        "an advertisement is checked before it is kept",
        P + "server.py",
        "        check_advertisement(epoch.plan, message)\n        id",
        "        epoch.advertised[member] = message\n        check_advertisement(epoch.plan, message)\n        id",
        "tests/protocols/test_fuzz.py",
        "-m",
        "not exhaustive",
    ),
    text(
        "clips are applied",
        P + "ring.py",
        "scaled.clip(-bound, bound, out=scaled)",
        "scaled += 0.0",
        "tests/protocols/test_encoding.py",
        "-k",
        "beyond_its_bound",
        finding="F3",
    ),
    # an epoch's end, records, journals
    text(
        "a vote is written before it is sent",
        P + "client.py",
        "        self._journal.voted(public.record(votes.values()))\n",
        "",
        "tests/protocols/test_certificates.py",
        "-k",
        "crash_after_their_vote",
    ),
    text(
        "a plan is written as joined",
        P + "client.py",
        "        self._journal.joined(offer.epoch, plan.digest)\n",
        "",
        ATTACKS,
        OFFERS,
        "-k",
        "joined_before or restarted",
        finding="F7",
    ),
    rule(
        "check_certificate", "tests/protocols/test_certificates.py tests/protocols/test_record.py", file=P + "record.py"
    ),
    text(
        "votes are verified",
        P + "record.py",
        'verify(roster.members[vote.member].identity_key, vote.signature, "vote", *statement)',
        "pass",
        "tests/protocols/test_record.py",
        "tests/protocols/test_certificates.py",
    ),
    text(
        "a record is canonical",
        P + "record_file.py",
        "    if again != message:",
        "    if False:",
        "tests/clients/test_journal.py",
        "-k",
        "record or byte",
    ),
    text(
        "wrong shares are told apart",
        P + "unmasking.py",
        "return found if all(fits(member, secret) for member, secret in found.items()) else None",
        "return found",
        ATTACKS,
        STEPS,
        "-k",
        "wrong_answers or wrong-answers or just_enough",
        finding="F14",
    ),
    # messages
    text(
        "size limit of a message",
        P + "messages.py",
        "    if len(data) > most_bytes:",
        "    if False:",
        "tests/protocols/test_messages.py",
        finding="F6",
    ),
    text(
        "names end at their end",
        P + "identity.py",
        '[A-Za-z0-9._-]*\\Z"',
        '[A-Za-z0-9._-]*$"',
        "tests/protocols/test_identity.py",
        "tests/protocols/test_messages.py",
        finding="F13",
    ),
    text(
        "control characters are shown",
        C + "words.py",
        'shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)',
        "shown = text",
        "tests/clients/test_words.py",
        finding="F13",
    ),
    # what surrounds the protocol
    text(
        "transport keys of the roster alone",
        S + "admission.py",
        "        if raw in self._keys:\n            return True\n",
        "        return True\n",
        "tests/server",
        "-k",
        "stranger",
    ),
    text(
        "what is over its rate dropped before it is read",
        S + "runner.py",
        "        if self._is_over_limit(member, rated_kind(parts[1].bytes)):\n            return False\n",
        "",
        "tests/server/test_network_input.py",
        "-k",
        "before_it_is_read",
    ),
    text(
        "no rate passed by a longer beginning",
        S + "inbound.py",
        "if type(message) in _RATED.values() and rated_kind(data) is None:",
        "if False:",
        "tests/server/test_network_input.py",
        "-k",
        "longer_beginning",
    ),
    text(
        "own code by its digest",
        U + "configuration/own_code.py",
        "        if permitted[reference] != found:",
        "        if False:",
        "tests/secure_codream/test_own_code.py",
    ),
    text(
        "a report runs no code of a record",
        U + "reports/starts.py",
        "        if config.code:",
        "        if False:",
        "tests/secure_codream/test_own_code.py",
        "-k",
        "report",
    ),
    text(
        "settings in the charter",
        U + "configuration/federation.py",
        '            tables["learning"] = _own_learning(asdict(learning_settings(self)))\n',
        "",
        "tests/secure_codream/test_charter_file.py",
        finding="F1",
    ),
    text(
        "aggregation in the charter",
        P + "charter.py",
        'return digest("charter", msgspec.msgpack.encode(self))',
        'return digest("charter", self.roster, self.settings)',
        "tests/protocols/test_charter.py",
        finding="F1",
    ),
    # what a model must be
    rule("_records_apart", f"{PRIVATE_GATE} -k bound_is_refused", "D1", C + "privacy/gate.py"),
    rule("_nothing_kept", f"{PRIVATE_GATE} -k bound_is_refused", "D1", C + "privacy/gate.py"),
    rule("_nothing_drawn_for_all", f"{PRIVATE_GATE} -k bound_is_refused", "D1", C + "privacy/gate.py"),
    rule("_require_same_sum", f"{PRIVATE_GATE} -k bound_is_refused", "B1", C + "privacy/gate.py"),
    rule("_move_constants", f"{GATE} -k mistake_is_refused", "D1", C + "models/gate.py"),
    rule("_kept", f"{GATE} -k mistake_is_refused", "B6", C + "models/gate.py"),
    rule("require_own_weights", f"{GATE} -k share_nothing", "B6", C + "models/gate.py"),
    text(
        "a softmax at the end",
        C + "models/gate.py",
        '    if end or kept == "between 0 and 1" or bent in NO_LOGITS:',
        "    if False:",
        GATE,
        "-k",
        "softmax",
        finding="B6",
    ),
    text(
        "the gate before the ledger",
        C + "privacy/participant.py",
        "    require_private_model(model, train, plan, device, name)\n",
        "",
        "tests/secure_codream/test_models_at_the_gate.py",
        "-k",
        "spent_nothing",
        finding="B1",
    ),
    text(
        "noise of private training",
        C + "privacy/training.py",
        "        noise_multiplier=plan.noise_multiplier,",
        "        noise_multiplier=0.0,",
        "tests/clients/test_private_training.py",
        finding="T1",
    ),
    text(
        "noise from a cipher",
        C + "privacy/training.py",
        "noise = torch.from_numpy(self.stream.normal(summed.numel())).view(summed.shape)",
        "noise = torch.randn(summed.shape)",
        "tests/clients/test_private_training.py",
        "-k",
        "computed_from_its_draws",
        finding="D4",
    ),
    text(
        "hidden draws of layers",
        C + "privacy/training.py",
        "with stream.hidden_draws(device):",
        "if True:",
        "tests/clients/test_private_training.py",
        "-k",
        "layers_draw",
        finding="D4",
    ),
    text(
        "the margin of discrete noise",
        C + "privacy/histogram.py",
        "MARGIN = 1.002",
        "MARGIN = 1.0",
        "tests/clients/test_private_histogram.py",
        "-k",
        "costs_no_more",
        finding="D4",
    ),
    text(
        "a statement's signature is checked",
        U + "reports/signed_statement.py",
        "    verify(member.identity_key, signature, LABEL, _message(statement))\n",
        "",
        "tests/secure_codream/test_signed_statement.py",
    ),
    text(
        "a statement is signed by the roster's key, not by its own",
        U + "reports/signed_statement.py",
        "verify(member.identity_key,",
        "verify(bytes.fromhex(statement.identity),",
        "tests/secure_codream/test_signed_statement.py",
        "-k",
        "own_key",
    ),
    text(
        "a course of one's own charges no noised sums, whatever [client_privacy] says",
        U + "configuration/limits.py",
        'federation.federation.course == "codream"',
        'federation.federation.course != "sums"',
        "tests/secure_codream/test_sums_in_a_records_ledger.py",
        "-k",
        "ones_own",
    ),
    text(
        "images with a ledger are not trained on without a charge",
        U + "configuration/limits.py",
        "    if client.policy.uncharged:\n",
        "    if True:\n",
        "tests/secure_codream/test_uncharged.py",
    ),
    text(
        "another vector of a client's is twice as far as none",
        P + "distributed_noise.py",
        "min(4 * largest_square(noise, length), rounded)",
        "largest_square(noise, length)",
        "tests/protocols/test_distributed_noise.py",
        "-k",
        "in_place_of_another",
    ),
    text(
        "rounding moves votes further apart",
        P + "distributed_noise.py",
        "rounded = (apart * noise.radius + 2 * math.sqrt(coordinates)) ** 2",
        "rounded = apart**2 * largest_square(noise, length)",
        "tests/protocols/test_distributed_noise.py",
        "-k",
        "further_apart",
    ),
    text(
        "a noised sum is charged to records",
        U + "deployment/client.py",
        "            self._of_records(rho)\n",
        "            pass\n",
        "tests/secure_codream/test_sums_in_a_records_ledger.py",
        "-k",
        "every_noised_sum",
    ),
    text(
        "a private client is asked where first weights come from",
        U + "configuration/weights.py",
        "    if not federation.record_private:\n",
        "    if True:\n",
        "tests/secure_codream/test_first_weights.py",
    ),
    text(
        "a ledger is read before it is written",
        C + "privacy/ledger.py",
        "            torn = self._take_new()\n",
        "            torn = self._first is None and self._take_new()\n",
        "tests/clients/test_ledger.py",
        "-k",
        "one_budget",
        finding="D6",
    ),
    text(
        "a whole plan is reserved",
        U + "configuration/limits.py",
        "        ledger.plan(plan.charges, **continued(plan, federation))\n",
        "",
        "tests/secure_codream/test_ledger_commands.py",
        "-k",
        "two_federations",
        finding="D6",
    ),
    text(
        "a record that a model fails at takes no other with it",
        C + "privacy/training.py",
        "        if len(inputs) > 1:\n            for half in",
        "        if False:\n            for half in",
        "tests/clients/test_private_training.py",
        "-k",
        "model_fails_at",
    ),
    text(
        "what a pass left that failed is not the next one's",
        C + "privacy/training.py",
        "        hooks.cleanup()  # what",
        "        pass  # what",
        "tests/clients/test_private_training.py",
        "-k",
        "model_fails_at",
    ),
    text(
        "no error outlives the part of a batch that failed",
        C + "privacy/training.py",
        "            said = refusals.failed(error)\n",
        "            said, optimiser.errors = refusals.failed(error), [error, *vars(optimiser).get('errors', ())]\n",
        "tests/clients/test_private_training.py",
        "-k",
        "outlives",
    ),
    text(
        "memory that is wanting is no record's failure",
        C + "models/refusals.py",
        "        return re.search(NO_MEMORY, _text(error), re.IGNORECASE) is None\n",
        "        return True\n",
        "tests/clients/test_private_training.py",
        "-k",
        "wanting",
    ),
    text(
        "a warning of failed records is no error",
        C + "privacy/training.py",
        '                warnings.simplefilter("always", RecordsFailed)  #',
        "                pass  #",
        "tests/clients/test_private_training.py",
        "-k",
        "records_fail_ends",
    ),
    text(
        "a failing record ends no private training",
        C + "privacy/training.py",
        "                failed=failed,\n",
        "",
        "tests/clients/test_private_training.py",
        "-k",
        "records_fail_ends",
    ),
    text(
        "whether features are kept hangs on no number of records",
        C + "models/fronts.py",
        "(records or 0) * blank[0].nbytes > MOST_KEPT:",
        "len(images) * blank[0].nbytes > MOST_KEPT:",
        "tests/clients/test_fronts.py",
        "-k",
        "whether_features or public_number",
    ),
    text(
        "test images with a ledger are not told of without a charge",
        U + "configuration/limits.py",
        "    if test is not None and tells_accuracy(client, federation):\n",
        "    if False:\n",
        "tests/secure_codream/test_uncharged.py",
        "-k",
        "test_images",
    ),
    text(
        "a statement says what rests on others' noise elsewhere",
        U + "deployment/statements.py",
        "            elsewhere=any(map(_shared_elsewhere, (ledger, *(parts or {}).values()))),\n",
        "",
        "tests/secure_codream/test_accessions.py",
        "-k",
        "others_noise",
    ),
    text(
        "a statement says which rounds were under earlier charters",
        U + "reports/statement.py",
        "    if level is None or not level.earlier:\n",
        "    if True:\n",
        "tests/secure_codream/test_statement.py",
        "-k",
        "earlier_charters",
    ),
    text(
        "a statement is of this schema",
        U + "reports/statement.py",
        "    schema: Literal[3] = SCHEMA\n",
        "    schema: int = SCHEMA\n",
        "tests/secure_codream/test_statement.py",
        "-k",
        "schema",
    ),
    text(
        "privacy has a distillation that does no harm",
        U + "configuration/federation.py",
        "        own |= PRIVATE_DISTILLATION\n",
        "        pass\n",
        "tests/secure_codream/test_blocks_answered.py",
        "-k",
        "do_not_forget",
    ),
    text(
        "what was begun under the charter before is no part of a plan",
        U + "configuration/limits.py",
        "    if charter:\n",
        "    if False:\n",
        "tests/secure_codream/test_sums_in_a_records_ledger.py",
        "-k",
        "reserves_all_that_it_has or another_charter_has_begun",
    ),
    text(
        "who succeeds takes the place of what was reserved before",
        C + "privacy/ledger.py",
        "            for by in before:  # after the own",
        "            for by in ():  # after the own",
        "tests/clients/test_ledger.py",
        "-k",
        "who_succeeds",
    ),
    text(
        "a lock that was removed is made again",
        C + "privacy/ledger.py",
        "            self._stay_alone()\n",
        "",
        "tests/clients/test_ledger.py",
        "-k",
        "lock_that_was_removed",
    ),
    text(
        "whoever looks takes no lock",
        C + "privacy/ledger.py",
        "            return is_locked(lease)\n",
        "            return not try_lock(lease)\n",
        "tests/clients/test_ledger.py",
        "-k",
        "takes_no_lock",
    ),
    text(
        "what is reserved is spent within the budget alone",
        C + "privacy/ledger.py",
        "            elif not self._all_fits():",
        "            elif False:",
        "tests/clients/test_ledger.py",
        "-k",
        "smaller_budget or two_runs",
    ),
    text(
        "whose place was taken plans anew",
        C + "privacy/ledger.py",
        "                self._append(Planned(by, (), _now()))",
        "                self._append(Ended(by, _now()))",
        "tests/clients/test_ledger.py",
        "-k",
        "place_was_taken",
    ),
    text(
        "what a process goes on with stays reserved",
        C + "privacy/ledger.py",
        "self._accounts[by].open and not self._goes_on(by)]",
        "self._accounts[by].open]",
        "tests/clients/test_ledger.py",
        "-k",
        "who_succeeds",
    ),
    text(
        "spare rounds are reserved within the budget",
        C + "privacy/ledger.py",
        "return beside, planned[: surely + more], surely",
        "return beside, planned, surely",
        "tests/secure_codream/test_sums_in_a_records_ledger.py",
        "-k",
        "no_longer_fit",
    ),
    text(
        "images spend in one ledger",
        U + "configuration/limits.py",
        "            index.claim(ledger.name, stored_digests(images))",
        "            pass",
        "tests/secure_codream/test_ledger_commands.py",
        "-k",
        "same_images",
        finding="D6",
    ),
    text(
        "an index that is held is not put elsewhere",
        C + "privacy/index.py",
        "    except LedgerError:  #",
        "    except LedgerDamaged:  #",
        "tests/clients/test_index.py",
        "-k",
        "put_elsewhere",
    ),
    text(
        "an index that is gone is not made anew",
        C + "privacy/index.py",
        "?mode=rw",
        "?mode=rwc",
        "tests/clients/test_index.py",
        "-k",
        "cannot_be_opened",
    ),
    text(
        "the index remembers how far a ledger had got",
        C + "privacy/ledger.py",
        "        if remembered is not None:",
        "        if False:",
        "tests/clients/test_index.py",
        "-k",
        "restored_whole",
        finding="D7",
    ),
    text(
        "the index remembers how far an earlier part's ledger had got",
        U + "configuration/limits.py",
        "budget=None, memory=index)",
        "budget=None)",
        "tests/secure_codream/test_accessions.py",
        "-k",
        "older_copy_of_a_part",
    ),
    text(
        "what other records gave a layer is none of these",
        C + "privacy/statistics.py",
        "        inputs.clear()  #",
        "        #",
        "tests/clients/test_private_statistics.py",
        "-k",
        "is_no_others",
    ),
    text(
        "a record gives one row to feature statistics",
        C + "privacy/statistics.py",
        "        if len(found) != BATCH:\n",
        "        if False:\n",
        "tests/clients/test_private_statistics.py",
        "-k",
        "gives_one_row",
    ),
    rule(
        "require_rows",
        "tests/clients/test_private_model_gate.py -k one_gradient",
        file=C + "privacy/training.py",
    ),
    rule(
        "_measured_apart",
        "tests/clients/test_private_model_gate.py -k need_one_row",
        file=C + "privacy/gate.py",
    ),
    text(
        "views are clipped as one record",
        C + "privacy/training.py",
        "if settings.views > 1:",
        "if False:",
        "tests/clients/test_private_training.py",
        "-k",
        "however_many_views",
    ),
    text(
        "a record's gradient is the mean of its views'",
        C + "privacy/training.py",
        "found.view(*inputs.shape[:2], *weight.shape).mean(1)",
        "found.view(*inputs.shape[:2], *weight.shape).sum(1)",
        "tests/clients/test_private_training.py",
        "-k",
        "of_its_views",
    ),
    text(
        "a mean of iterates goes on where it was",
        C + "privacy/averaged.py",
        "        self._mean = {name: reached[_MEAN + name] for name in self._mean}\n",
        "",
        "tests/clients/test_private_training.py",
        "-k",
        "mean_of_all_iterates",
    ),
    text(
        "nothing came of it",
        C + "privacy/releases.py",
        "            if self._unreleased[charge]:",
        "            if False:",
        "tests/clients/test_private_training.py",
        "-k",
        "killed",
        finding="D8",
    ),
    text(
        "judging costs budget",
        C + "privacy/judge.py",
        "self._releases.once(self._plan.judgement(round), release)",
        "release(Iterates())",
        "tests/clients/test_noised_judge.py",
    ),
    text(
        "judging is noised",
        C + "privacy/judge.py",
        "noised(np.array([correct()]), self._plan.settings.judge_noise, stream)",
        "np.array([float(correct())])",
        "tests/clients/test_noised_judge.py",
    ),
    text(
        "what is counted is claimed",
        U + "configuration/assembly.py",
        "return pool([train, judge.data]) if judge is not None and plan.judgements else train",
        "return train",
        "tests/secure_codream/test_private_federation.py",
        "-k",
        "noised_counts",
    ),
    text(
        "a private split is image by image",
        U + "configuration/images.py",
        "one_by_one=private,",
        "one_by_one=False,",
        "tests/secure_codream/test_private_federation.py",
        "-k",
        "one_record_more",
        finding="D3",
    ),
    text(
        "another coin for testing than for judging",
        C + "data/splits.py",
        'TEST = "|test"',
        'TEST = ""',
        "tests/clients/test_held_back.py",
    ),
    text(
        "the own vote in the record shows a restored folder",
        U + "deployment/client.py",
        "if record.offer.epoch >= self._next_epoch and any(",
        "if False and any(",
        "tests/secure_codream/test_restored_copies.py",
        finding="D7",
    ),
    text(
        "a ledger knows what its journal does",
        U + "configuration/limits.py",
        "            _require_what_the_journal_knows(path, ledger, federation.federation.name, client.name)\n",
        "            pass\n",
        "tests/secure_codream/test_restored_copies.py",
        finding="D7",
    ),
    rule("_require_known", "tests/secure_codream/test_accessions.py", "D6", U + "configuration/limits.py"),
    rule("_be_alone", "tests/clients/test_ledger.py -k one_spender", "D6", C + "privacy/ledger.py"),
    text(
        "a failure is an outcome",
        C + "privacy/releases.py",
        "        except Exception:\n            self._released(charge)",
        "        except Exception:\n            pass",
        "tests/clients/test_private_training.py",
        "-k",
        "fails_by_itself",
        finding="D8",
    ),
    text(
        "releases are of the images",
        U + "configuration/limits.py",
        "|{client.seed}|{digest_of(images)}",
        "|{client.seed}",
        "tests/secure_codream/test_ledger_commands.py",
        "-k",
        "another_run",
        finding="D9",
    ),
    text(
        "shares are sized for those who add them",
        P + "record_noise.py",
        "variance = math.ceil(multiplier**2 * rounded_square(radius, length) / honest)",
        "variance = math.ceil(multiplier**2 * rounded_square(radius, length) / (2 * honest))",
        "tests/secure_codream/test_audit.py",
        "-k",
        "missing_share",
    ),
    text(
        "a Gaussian mechanism is held against Gaussians",
        U + "audit/bounds.py",
        "    return gaussian_epsilon(float(norm.ppf(right).sum()), delta)",
        "    return max(0.0, math.log((right[0] - delta) / (1 - right[1])))",
        "tests/secure_codream/test_audit.py",
        "-k",
        "half_the_size",
        finding="D5",
    ),
    # What a run rests on besides: its end, its beginning, and what a person is told of it.
    text(
        "nothing follows an early end",
        P + "record.py",
        "if self.over and self.certified < self._course.epochs:",
        "if False:",
        "tests/clients/test_early_end.py",
    ),
    text(
        "colluders cannot say that epochs were opened",
        P + "server.py",
        "return claims[colluders] if len(claims) > colluders else 0",
        "return max(claims, default=0)",
        "tests/server/test_first_start.py",
    ),
    text(
        "whatever a learner raises is a failure",
        C + "raised.py",
        "    except BaseException as error:\n        return Raised(error)",
        "    except Exception as error:\n        return Raised(error)",
        "tests/clients/test_failures.py",
    ),
    text(
        "a rare class that is given up is seen",
        C + "learning/judge.py",
        "return score.recall < self._recall or (score.accuracy < self._accuracy and not fairer)",
        "return score.accuracy < self._accuracy",
        "tests/clients/test_judge.py",
        finding="U1",
    ),
    text(
        "images that lack a class judge collapses alone",
        C + "learning/judge.py",
        "if self.held_back and self.sees_all:",
        "if self.held_back:",
        "tests/clients/test_judge.py",
    ),
    text(
        "nothing runs that was not accepted",
        U + "membership/accepted.py",
        "if accepted != charter_bytes(config, roster):",
        "if False:",
        "tests/secure_codream/test_membership.py",
    ),
    text(
        "a revoked key is refused under any name",
        P + "identity.py",
        "next((one for one in self.revoked if {one.identity_key, one.transport_key} & {*keys}), None)",
        "None",
        "tests/protocols/test_identity.py",
        "tests/secure_codream/test_membership.py",
    ),
    text(
        "a passphrase leaves the environment at once",
        U + "membership/passphrase.py",
        'os.environ.pop(VARIABLE, "")',
        'os.environ.get(VARIABLE, "")',
        "tests/secure_codream/test_membership.py",
    ),
    # virtual clients, and the study of a neighbour graph
    text(
        "virtual client remembers what was never checked",
        U + "simulation/virtual/remembered.py",
        "key = (what, *(one if isinstance(one, bytes | int) else id(one) for one in on))",
        "key = (what,)",
        "tests/secure_codream/test_simulate.py",
        "-k",
        "what_is_remembered or false_signature",
    ),
    text(
        "survivors without enough neighbours",
        U + "threats/checker/neighbour_graph.py",
        "len(graph.neighbours[member] & survivors) >= threshold",
        "True",
        "tests/protocols/test_neighbour_graph.py",
    ),
    text(
        "every told set counts as signed",
        U + "threats/checker/neighbour_graph.py",
        "if 2 * (views.count(view) + colluders) > members + colluders",
        "if views",
        "tests/protocols/test_neighbour_graph.py",
    ),
)


def mutated(source: str, mutant: Mutant) -> str:
    """The file with the change in it.

    Raises:
        ValueError: the place is not there, or there more than once.
    """
    if mutant.new is not None:
        if source.count(mutant.old) != 1:
            raise ValueError(
                f"{mutant.name}: {source.count(mutant.old)} places in {mutant.file}; exactly one is needed"
            )
        return source.replace(mutant.old, mutant.new)
    found = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef) and node.name == mutant.old
    ]
    if len(found) != 1:
        raise ValueError(f"{mutant.name}: {len(found)} functions of that name in {mutant.file}; exactly one is needed")
    (function,) = found
    lines = source.splitlines(keepends=True)
    docstring, last = function.body[0], function.body[-1]
    assert docstring.end_lineno is not None and last.end_lineno is not None
    indent = " " * docstring.col_offset
    return "".join([*lines[: docstring.end_lineno], f"{indent}return None\n", *lines[last.end_lineno :]])


def run(folder: Path, arguments: tuple[str, ...]) -> tuple[int, str]:
    """pytest's exit code and the last lines that it printed, run on the copy."""
    rooms = [str(folder / room) for room in ("protocols", "clients", "server", ".")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(rooms), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not exhaustive", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, f"no end within {SECONDS} s"
    return done.returncode, " ".join(done.stdout.splitlines()[-3:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="those whose name contains this")
    parser.add_argument("--list", action="store_true", help="name them, and run nothing")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not arguments.only or arguments.only in mutant.name]
    if arguments.list:
        for mutant in chosen:
            print(f"{mutant.name:45} {mutant.finding:4} {mutant.file}")
        return 0
    survivors = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for room in COPIED:
            shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        began = time.monotonic()
        for mutant in chosen:
            started, path = time.monotonic(), folder / mutant.file
            source = path.read_text(encoding="utf-8")
            path.write_text(mutated(source, mutant), encoding="utf-8")
            code, said = run(folder, mutant.tests)
            path.write_text(source, encoding="utf-8")
            noticed = code == 1  # a failed test; what cannot even be collected, or tests nothing, notices nothing
            if noticed and run(folder, mutant.tests)[0] != 0:
                noticed, said = False, "its tests fail on the code as it is"
            print(
                f"{'noticed ' if noticed else 'SURVIVED'} {mutant.name:45} {mutant.finding:4} "
                f"{time.monotonic() - started:5.1f} s{'' if noticed else f'  ({code}: {said})'}",
                flush=True,
            )
            if not noticed:
                survivors.append(mutant.name)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants noticed in {time.monotonic() - began:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
