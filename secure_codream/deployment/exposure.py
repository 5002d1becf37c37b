"""What a charter's way to sum exposes, in words for whoever decides: said when keys are made, and to each client."""

from __future__ import annotations

from collections.abc import Sequence

from codream_protocols.charter import Charter, blocks_by_key, cuts
from codream_protocols.course import Course
from codream_protocols.identity import Roster
from secure_codream.configuration.courses import cut_to_bound
from secure_codream.configuration.federation import FederationConfig, learning_settings, privacy_settings

MOST_CUT = 0.05
"""A share of the start images' values; where more are cut, the pictures are others than the charter's."""


def remarks(config: FederationConfig) -> list[str]:
    """What is to be said to whoever signs the settings, while they can be changed: nothing, where all is well."""
    said = []
    if config.federation.course != "sums" and config.task.class_names is None:
        said.append(
            "[task] has no class_names: a client whose images name their classes will not take part without it."
        )
    if (pictures := off_scale(config)) is not None:
        found, do = pictures
        said.append(f"{found}, and models that know other contrasts say less of them: give {do}.")
    if config.federation.course == "codream":
        share, enough = cut_to_bound(config)
        if share > MOST_CUT:
            said.append(
                f"{share:.0%} of the values of {config.dreams.start} that dreams start from lie beyond pixel_bound = "
                f"{config.dreams.pixel_bound:g} and are cut to it: pixel_bound = {enough} under [dreams] keeps them."
            )
    return said


def off_scale(config: FederationConfig) -> tuple[str, str] | None:
    """Pictures that clients are shown on no scale of theirs, and what puts them on it; None where all is well."""
    if not config.pictures_off_scale:
        return None
    if config.dp_sgd is not None:
        shown, do = "models are handed down on", "mean and std under [task]"
    else:
        shown, do = "dreams start from", "mean and std under [task], or matched = true under [dreams]"
    return f"{config.dreams.start} that {shown} lie in [-1, 1]", do


def protection(config: FederationConfig) -> str:
    """Whom differential privacy protects and within which bound, to whoever signs or accepts the settings."""
    said = []
    if config.privacy is not None:
        bound = privacy_settings(config.privacy)
        delta = "a tenth of one over a client's images" if bound.delta is None else f"{bound.delta:g}"
        learning = learning_settings(config)
        said.append(
            f"each record, epsilon {bound.epsilon:g} at delta {delta}; models need group norm, as cnn2_gn has, and "
            f"learn from dreams with distil_lr = {learning.distil_lr:g} and distil_noise = {learning.distil_noise:g}"
        )
    if config.dp_sgd is not None:
        said.append(
            f"each record, epsilon {config.dp_sgd.epsilon:g} at delta {config.dp_sgd.delta:g}, by noise of which each "
            "client adds a share"
        )
    if config.client_privacy is not None:
        said.append(
            f"all that one client sends, epsilon {config.client_privacy.epsilon:g} at delta "
            f"{config.client_privacy.delta:g}"
        )
    return f"Differential privacy: {'; '.join(said) or 'none'}."


def exposures(config: FederationConfig, roster: Roster) -> list[str]:
    """One line a fact: the mode, the blocks, and what losses would show."""
    charter = config.charter(roster)
    aggregation = charter.aggregation
    lines = []
    if aggregation.mode == "lockstep":
        lines.append(
            f"Lockstep: every sum is over all {charter.members} clients; while one is away, the others wait. Up to "
            f"{charter.members - 2} of them colluding with the server learn nothing but sums."
        )
    else:
        blocks = "; ".join(_names(roster, block) for block in charter.blocks)
        lines.append(f"Resilient: sums are over whole blocks, and who drops out takes its block along: {blocks}.")
        if len(charter.blocks) == 1:
            lines.append(
                "There is one block, so this federation bears no loss: twice (colluders + 2) clients, "
                f"{2 * (aggregation.colluders + 2)}, or more make two."
            )
    if aggregation.losses == "allow":
        lines.append(
            "losses = 'allow': two sums that differ by one client show that client's numbers. What depends on no state "
            "(class weights, counts, statistics) shows exactly, soft labels and updates nearly so. Each client must "
            "permit it under [policy] with losses = true."
        )
    if config.federation.course == "codream" and config.dreams.matched:
        lines.append(
            "matched = true: everybody learns how bright and how contrasted the clients' images are, means and squares "
            "over all clients, exactly and in each round. No client can leave it out, also with tell_accuracy = false."
        )
    if config.predecessor is not None:
        lines.append(
            "This charter follows another: each client compares its blocks with those that its data has answered for, "
            "and takes a cut block only where its policy has cuts = true."
        )
        named = [[key.hex() for key in block] for block in blocks_by_key(charter, roster)]
        before = 0 if charter.predecessor is None else charter.predecessor.colluders
        least = max(aggregation.colluders, before) + 2
        parts = cuts(predecessors_blocks(charter), named, least)
        if parts and (
            config.client_privacy is None or ":" in config.federation.course
        ):  # a course of one's own: who knows
            lines.append(f"It is {cut_exposure(roster, least, parts)}.")
    return lines


def all_noised(course: Course, charter: Charter) -> bool:
    """Whether every vector of a course has noise, so that a difference of sums keeps what the noise promises."""
    return all(spec.noise is not None for spec in course.specs(charter.least_honest))


def predecessors_blocks(charter: Charter) -> list[list[str]]:
    """What a charter says of its predecessors' blocks: identity keys, in hexadecimal digits."""
    blocks = () if charter.predecessor is None else charter.predecessor.blocks
    return [[key.hex() for key in block] for block in blocks]


def cut_exposure(roster: Roster, least: int, parts: Sequence[Sequence[str]]) -> str:
    """What a client is shown before it takes a charter that cuts a block; every part would need `least` members."""
    names = {member.identity_key.hex(): member.name for member in (*roster.revoked, *roster.members)}
    shown = "; ".join(sorted(", ".join(sorted(names.get(one, f"{one[:16]}…") for one in part)) for part in parts))
    return (
        f"a charter that cuts a block: sums before it and after it together tell apart {shown}, fewer than the "
        f"{least} that every part needs. Their numbers that depend on no state show "
        "exactly, their soft labels in part, even after training anew"
    )


def _names(roster: Roster, block: Sequence[int]) -> str:
    return ", ".join(roster.members[member].name for member in block)
