"""The privacy statement of a run: what is promised to whom, what it has cost, and what is not covered.

`privacy.json` (`PrivacyStatement`) and `privacy.html`, one self-contained page, lie in the run's folder. A run may be
private for each record, for each client, for both or for neither; the last is said as plainly as the others.
Nothing here needs a tensor library, except to count a record-level epsilon (`member_spending`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec

from secure_codream.configuration.weights import BUILT_IN
from secure_codream.reports.audit_results import AuditResult
from secure_codream.reports.events import Amount, Count
from secure_codream.reports.files import MalformedRecord, MissingRecord, write_whole
from secure_codream.reports.pages import page_environment
from secure_codream.reports.summary import Share
from secure_codream.reports.versions import versions_of
from secure_codream.reports.words import counted

if TYPE_CHECKING:
    from codream_clients.privacy.accounting import AccountantName, SampledGaussian
    from codream_clients.privacy.ledger import Budget, Ledger, Spender
    from codream_protocols.charter import Charter
    from codream_protocols.courses.codream import CoDream
    from codream_protocols.courses.dp_sgd import DPSGD
    from codream_server.privacy_statement import ClientPrivacyStatement

SCHEMA: Final = 3
STATEMENT = "privacy.json"
MAX_STATEMENT_BYTES = 16 << 20
PACKAGES = ("secure-codream", "opacus", "torch", "numpy")

RECORDS_OF_A_PERSON = (2, 5, 20)
VACUOUS = 20.0
"""From this epsilon on a bound says nothing that anybody could use: e^20 is five hundred million."""

Positive = Annotated[float, msgspec.Meta(gt=0)]

NOT_COVERED_RECORD = (
    "hyperparameters, and which run was kept, if they were chosen by looking at the records",
    "how long a client computes, when it is connected, and whether it takes part at all",
    "the number of its records, which the rate of sampling and a delta that nobody gave follow from, unless it was "
    "given a public number to go by",
    "more than one record of a person, here or at several clients, beyond what the statement says that several cost",
)
NOT_COVERED_CLIENT = (
    "who takes part and when, and how long a client computes",
    "clients that leave their noise out, beyond the stated number of colluders",
    "hyperparameters, if they were chosen by looking at the clients' data",
)
METRICS_REPORTED = "accuracies that clients report to the server; they are computed from images without noise"
FLOATING_POINT = (
    "attacks on floating-point noise: that of training and of statistics is made in double precision and rounded once; "
    "the histogram's is exact"
)
OWN_MODEL = (
    "this client's own model and figures, which learn from its records without noise: they are to stay where the "
    "images may be seen"
)
GRADIENTS = (
    "what floating-point arithmetic lets a record do to the gradients of others that go through the model with it: as "
    "many images do in every pass, which left no trace where it was tried, but it is not proven, and at weights that "
    "somebody chose such a trace may be whole gradients; rounding, clamping and noise are exact"
)
DEALT_OUT = (
    "who of a known set is dealt out to which client: this is an experiment, and one image more in the set would deal "
    "others; what is promised holds for the images that each client got"
)
SHARED_NOISE = (
    "clients that add no noise, or reveal theirs, beyond the stated number: nobody can see a missing share, so the "
    "claim stands on masks and on who really adds noise; what earlier charters and other federations have charged to "
    "the same ledger holds against as many as theirs said"
)
ELSEWHERE = (
    "; what was charged under other charters and in other federations, in part on noise that others added there, "
    "against as many colluding clients as those said"
)
FIRST_WEIGHTS = "weights that a model came with, if they were trained on the same records: nobody can see that"
ANOTHER_RUN = "runs on the same data that are charged to another ledger, or to none, as comparisons are"


class Mechanism(msgspec.Struct, frozen=True, kw_only=True):
    """One Gaussian mechanism: its noise over its sensitivity, its Poisson rate, and how often it ran.

    Attributes:
        purpose, noise_multiplier, sample_rate, steps, discrete, whole: of `SampledGaussian`.
        federation: whose; the ledger of a site's images has those of all.
        began: when, in UTC; None is reserved, and not begun yet.
    """

    purpose: str
    noise_multiplier: Positive
    sample_rate: Share
    steps: Count
    discrete: bool = False
    whole: bool = False
    federation: str = ""
    began: str | None = None


class MemberSpending(msgspec.Struct, frozen=True, kw_only=True):
    """One client's ledger: its budget, and what is spent and left of it, by all federations on the same images.

    What is reserved counts as spent. `second` is the other accountant's bound; where noise is of the ring there is none
    but Renyi divergences at integer orders, and `second_accountant` is empty. `persons` has what is spent of a person
    with so many records, all of them together. `ledger` is its name, `entries` and `head` how far it had got: with them
    anybody who has the ledger sees whether it is this one that was stated.
    """

    name: str
    epsilon: Positive
    delta: Share
    accountant: str
    spent: Amount
    left: Amount
    second_accountant: str
    second: Amount
    mechanisms: list[Mechanism]
    persons: dict[int, Amount] = {}
    ledger: str = ""
    entries: Count = 0
    head: str = ""


class RecordLevel(msgspec.Struct, frozen=True, kw_only=True):
    """Privacy of each record of each client.

    Attributes:
        members: every client that spent, in the roster's order.
        clip: L2 bound of a record's gradient; None where no gradients are noised.
        sums: whether noised sums of clients' vectors are all that protects them; a client's own model is none of it.
        by_colluders: of noise of the ring, epsilon of the whole plan where 0, 1, 2, ... other clients reveal their
            shares, or add none; each client knows its own, so that against clients one more is to be counted. As if all
            rounds were under this charter: rosters of earlier ones are not known.
        earlier: how many of its rounds were under earlier charters, whose charges hold against as many as those said.
        elsewhere: whether some of what was spent, under other charters or in other federations, rests on noise that
            others added there.
        weights: where the model's first weights come from; empty where nobody was asked.
        unit, neighbours, mechanism, sampling, randomness: in words.
    """

    members: list[MemberSpending]
    clip: Positive | None
    by_colluders: list[Amount] = []
    earlier: Count = 0
    sums: bool = False
    elsewhere: bool = False
    weights: str = ""
    unit: str = "one record of a client's training data"
    neighbours: str = "one record added or removed"
    mechanism: str = "DP-SGD (Abadi et al., CCS 2016), and Gaussian noise on counts and on statistics"
    sampling: str = "Poisson: in each step every record takes part on its own, with the same probability"
    randomness: str = "AES-256 in counter mode under keys of the operating system, for noise and sampling"


class ClientLevel(msgspec.Struct, frozen=True, kw_only=True):
    """Privacy of everything that one client contributes; fields are None where a mechanism has no such thing.

    Attributes:
        epsilon, delta: of the whole plan; `spent` and `left` of epsilon so far.
        noise_multiplier: of the fewest honest survivors' noise together, over the sensitivity.
        steps: sums that carry the noise.
        by_colluders: epsilon of the whole plan where 0, 1, 2, ... clients reveal their shares; a member knows its own,
            so that against members one more is to be counted. As if all rounds were under this charter.
        earlier: see `RecordLevel`.
        clips: L2 bounds, by what they bound.
        honest_shares: how many shares make up that noise.
        excess_noise: variance with the whole roster, over what the promise needs.
    """

    epsilon: Positive
    delta: Share
    spent: Amount
    left: Amount
    noise_multiplier: Positive
    accountant: str
    mechanism: str
    steps: Count | None = None
    by_colluders: list[Amount] = []
    earlier: Count = 0
    clips: dict[str, float] = {}
    honest_shares: Count | None = None
    excess_noise: Amount | None = None
    unit: str = "one client: all that it sends of its data in the whole run"
    neighbours: str = "one client's vectors replaced by zeros"
    sampling: str = "none: every client takes part in every sum"


class PrivacyStatement(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a run says about privacy.

    Attributes:
        run: its name.
        party: who says this; empty where nobody does, as in an experiment.
        identity: its public key, and `signature` what it has signed with it (`signed_statement`), in hexadecimal; empty
            where nobody has.
        members: of the roster, by name; `serial` is the roster's number.
        date: when this was written, in UTC.
        roster: digest of the roster, and `recipe` that of the settings, in hexadecimal; empty where there is none.
        record: privacy of records, or None.
        client: privacy of clients, or None.
        colluders: c, clients that may reveal all they hold to the server.
        versions: of the packages that train and count.
        uncharged: who has trained on some of the same images and charged nothing, so that no epsilon here bounds it.
        not_covered: what the epsilons say nothing about.
        audit: the empirical lower bounds, or None without an audit.
    """

    schema: Literal[3] = SCHEMA
    run: str
    party: str = ""
    identity: str = ""
    signature: str = ""
    members: list[str] = []
    serial: Count = 0
    date: str = ""
    roster: str = ""
    recipe: str = ""
    record: RecordLevel | None
    client: ClientLevel | None
    colluders: Count
    versions: dict[str, str]
    not_covered: list[str]
    uncharged: list[str] = []
    audit: AuditResult | None

    @property
    def reading(self) -> str:
        """What the epsilon of the client that has spent the most means, for a person who knows no epsilon."""
        spent = [(member.spent, member.delta) for member in self.record.members] if self.record is not None else []
        if not spent:
            return ""
        right = max(1 - (1 - delta) / (1 + math.exp(min(epsilon, 700.0))) for epsilon, delta in spent)
        who = "Whoever knows all else"
        if self.record is not None and self.record.by_colluders:
            who = f"Whoever knows all other records, and of the noise what {counted(self.colluders, 'client')} added"
        return (
            f"{who}, sees all that left the client, and guesses whether one record took part, where "
            f"both are as likely, is right in at most {100 * right:.3g} of 100 cases; without looking, in 50"
        )

    def _against(self) -> str:
        """Whom noise that clients share protects against."""
        return (
            f"the server and up to {counted(self.colluders, 'client')} colluding with it (a client that looks for "
            "itself is one), as long as the others add their noise and keep it secret" + _of_earlier(self.record)
        )

    @property
    def headline(self) -> str:
        """The whole of it in two sentences, for a person who reads nothing else."""
        if self.record is None and self.client is None:
            return (
                "This run has no differential privacy. Secure aggregation hides who said what, but the sums, the "
                "dreams and the models may tell something about single records, without any bound."
            )
        parts = []
        if self.record is not None:
            worst = max((member.spent for member in self.record.members), default=0.0)
            delta = max((member.delta for member in self.record.members), default=0.0)
            parts.append(
                f"Each training record is protected with epsilon {worst:.3g} at delta {delta:.2g}, or better, against "
                + ("everybody but its own client" if not self.record.by_colluders else self._against())
                + (ELSEWHERE if self.record.elsewhere else "")
            )
        if self.client is not None:
            parts.append(
                f"Each client as a whole is protected with epsilon {self.client.spent:.3g} at delta "
                f"{self.client.delta:.2g}, also against the server"
                + (f" and {self.colluders} colluding with it" if self.colluders else "")
                + _of_earlier(self.client)
            )
        if self.uncharged:
            parts.append(f"WITHOUT A BOUND, some of the same images were used by {'; '.join(self.uncharged)}")
        refuted = self.audit is not None and bool(self.audit.refuted)
        return ". ".join(parts) + (". THE AUDIT REFUTES THE CLAIM." if refuted else ".")


def _of_earlier(level: RecordLevel | ClientLevel | None) -> str:
    """Whom earlier charters' rounds are protected against; this one says nothing of those."""
    if level is None or not level.earlier:
        return ""
    return f"; in {counted(level.earlier, 'round')} under earlier charters, against as many as those said"


def ring_level(
    members: Sequence[tuple[str, Budget, Sequence[Mechanism]]], course: DPSGD, charter: Charter
) -> RecordLevel:
    """Clients' ledgers, (name, budget, mechanisms) each, in a federation of DP-SGD through the ring."""
    from codream_clients.privacy.ring_plan import RingPlan

    plan = RingPlan.of(course, charter)
    smallest = plan.honest + charter.aggregation.colluders
    return RecordLevel(
        members=[member_spending(*member) for member in members],
        clip=course.settings.max_grad_norm,
        by_colluders=[plan.epsilon_with(smallest - revealed) for revealed in range(smallest)],
        earlier=plan.earlier,
        mechanism=(
            "DP-SGD through the ring: each gradient clipped, and rounded within its norm (Kairouz, Liu and Steinke, "
            f"ICML 2021), and discrete Gaussian noise of which {plan.honest} clients' shares are the whole"
        ),
        randomness="the operating system's, for noise, sampling and rounding",
    )


def sums_level(
    members: Sequence[tuple[str, Budget, Sequence[Mechanism]]], course: CoDream, charter: Charter
) -> RecordLevel:
    """Clients' ledgers, (name, budget, mechanisms) each, where noised sums of their vectors are charged to records."""
    from codream_clients.privacy.sums_plan import SumsPlan

    plan = SumsPlan.of(course, charter)
    smallest = plan.honest + charter.aggregation.colluders
    return RecordLevel(
        members=[member_spending(*member) for member in members],
        clip=None,
        by_colluders=[plan.epsilon_with(smallest - revealed) for revealed in range(smallest)],
        earlier=plan.earlier,
        sums=True,
        mechanism=(
            "noised sums of clients' vectors: with one record more or less a client sends another vector, which costs "
            "its record 4 times what its presence costs the client in zCDP, of votes 2.8 times at most"
        ),
        sampling="none: every client takes part in every sum",
        randomness="the operating system's, for noise",
    )


def record_level(
    members: Sequence[tuple[str, Budget, Sequence[Mechanism]]], table: Mapping[str, Any] | None
) -> RecordLevel:
    """Clients' ledgers, (name, budget, mechanisms) each, under a federation's `[privacy]` table."""
    from secure_codream.configuration.federation import privacy_settings

    settings = privacy_settings(table or {})
    return RecordLevel(
        members=[member_spending(*member) for member in members],
        clip=settings.max_grad_norm,
    )


def client_level(stated: ClientPrivacyStatement) -> ClientLevel:
    """The server room's statement of client-level privacy, as a part of the run's."""
    bounds = {
        "dream updates, in clips": stated.update_norm,
        "soft labels, in clips": stated.logit_norm,
        "votes": stated.vote_norm,
    }
    return ClientLevel(
        epsilon=stated.epsilon,
        delta=stated.delta,
        spent=stated.epsilon_spent,
        left=max(stated.epsilon - stated.epsilon_spent, 0.0),
        noise_multiplier=stated.noise_multiplier,
        accountant=stated.accountant,
        mechanism=stated.mechanism,
        clips={name: bound for name, bound in bounds.items() if bound is not None},
        honest_shares=stated.honest_shares,
        excess_noise=stated.excess_noise,
        by_colluders=list(stated.epsilon_by_colluders),
        earlier=stated.earlier,
        unit=stated.unit,
        neighbours=stated.neighbours,
    )


def mechanisms_of(ledger: Ledger) -> list[Mechanism]:
    """All that counts in a ledger, by federation: what was begun, and what is reserved."""

    def mechanism(by: Spender, charge: SampledGaussian, began: datetime | None) -> Mechanism:
        return Mechanism(**vars(charge), federation=by.federation, began=None if began is None else began.isoformat())

    return [
        mechanism(by, charge, began)
        for by, account in ledger.accounts.items()
        for charge, began in [
            *_steps_together(zip(account.begun, account.times, strict=True)),
            *_steps_together((charge, None) for charge in account.open),
        ]
    ]


def _steps_together(
    charges: Iterable[tuple[SampledGaussian, datetime | None]],
) -> list[tuple[SampledGaussian, datetime | None]]:
    """Steps in the ring, which a ledger has one by one, as one charge of so many, begun when the first was."""
    found: list[tuple[SampledGaussian, datetime | None]] = []
    places: dict[SampledGaussian, int] = {}
    for charge, began in charges:
        if charge in places:
            earlier, since = found[places[charge]]
            found[places[charge]] = replace(earlier, steps=earlier.steps + charge.steps), since
            continue
        if charge.discrete:
            places[charge] = len(found)
        found.append((charge, began))
    return found


def member_spending(name: str, budget: Budget, mechanisms: Sequence[Mechanism]) -> MemberSpending:
    """What `mechanisms` have cost a client's records under its ledger's budget, and the other accountant's opinion."""
    from codream_clients.privacy.accounting import SampledGaussian, epsilon_of
    from codream_clients.privacy.groups import group_epsilon

    charges = [
        SampledGaussian(one.noise_multiplier, one.sample_rate, one.steps, one.purpose, one.discrete, one.whole)
        for one in mechanisms
    ]
    ring = any(charge.discrete for charge in charges)
    second: AccountantName = "rdp" if budget.accountant == "prv" else "prv"
    spent = epsilon_of(charges, budget.delta, budget.accountant)
    return MemberSpending(
        name=name,
        epsilon=budget.epsilon,
        delta=budget.delta,
        accountant="rdp at integer orders" if ring else budget.accountant,
        spent=spent,
        left=max(budget.epsilon - spent, 0.0),
        second_accountant="" if ring else second,
        second=epsilon_of(charges, budget.delta, second),
        mechanisms=list(mechanisms),
        persons={records: group_epsilon(charges, budget.delta, records) for records in RECORDS_OF_A_PERSON},
    )


def privacy_statement(
    run: str,
    *,
    record: RecordLevel | None = None,
    client: ClientLevel | None = None,
    colluders: int = 0,
    metrics_reported: bool = True,
    dealt_out: bool = False,
    audit: AuditResult | None = None,
    roster: bytes = b"",
    recipe: bytes = b"",
    uncharged: Sequence[str] = (),
) -> PrivacyStatement:
    """The statement of `run`; without `record` and `client` it says that there is no differential privacy.

    `metrics_reported`: whether clients told the server accuracies, which no epsilon covers. `dealt_out`: whether
    clients took parts of one known set, as in an experiment. `roster`, `recipe`: digests of who ran, and with what.
    `uncharged`: who has trained on some of the same images and charged nothing.
    """
    not_covered = [*(NOT_COVERED_RECORD if record else ()), *(NOT_COVERED_CLIENT if client else ())]
    if record or client:
        not_covered += [*([METRICS_REPORTED] if metrics_reported else []), ANOTHER_RUN]
        if record is not None:
            not_covered += [DEALT_OUT] if dealt_out else []
            not_covered += [] if record.weights == BUILT_IN else [FIRST_WEIGHTS]
            not_covered += [SHARED_NOISE] if record.by_colluders or record.elsewhere else []
            not_covered.append(OWN_MODEL if record.sums else GRADIENTS if record.by_colluders else FLOATING_POINT)
    return PrivacyStatement(
        run=run,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        roster=roster.hex(),
        recipe=recipe.hex(),
        record=record,
        client=client,
        colluders=colluders,
        versions=versions_of(*PACKAGES, python=False),
        not_covered=not_covered,
        uncharged=list(uncharged),
        audit=audit,
    )


def claim_of(folder: Path, statement: PrivacyStatement) -> tuple[float, float]:
    """The epsilon and delta that an audit of this run's code is to attack: of the client that has spent the most.

    Raises `MalformedRecord` if the run promises nothing for single records, or other versions of the code ran.
    """
    path = folder / STATEMENT
    if statement.record is None or not any(member.spent for member in statement.record.members):
        raise MalformedRecord(path, "no record-level epsilon", "a run with [privacy] that has spent some")
    here = versions_of(*PACKAGES, python=False)
    if statement.versions != here:
        raise MalformedRecord(path, f"a run of {statement.versions}", f"one of the code that is audited, {here}")
    worst = max(statement.record.members, key=lambda member: member.spent)
    return worst.spent, worst.delta


def write_statement(folder: Path, statement: PrivacyStatement) -> tuple[Path, Path]:
    """Write `privacy.json` and `privacy.html` into a run's folder; returns both paths."""
    page = page_environment().get_template("statement.html.j2").render(s=statement, vacuous=VACUOUS)
    return write_whole(folder / STATEMENT, encoded(statement)), write_whole(folder / "privacy.html", page.encode())


def statement_path(path: Path) -> Path:
    """A statement's file: in a run's or party's folder, or `path` itself."""
    return path / STATEMENT if path.is_dir() else path


def encoded(statement: PrivacyStatement) -> bytes:
    """The content of `privacy.json`: there is one form for each statement."""
    return msgspec.json.format(msgspec.json.encode(statement), indent=2) + b"\n"


def read_statement(path: Path) -> PrivacyStatement:
    """The statement in a run's folder, or in a file.

    Raises:
        MissingRecord: there is none.
        MalformedRecord: it is too large, or no statement.
    """
    path = statement_path(path)
    if not path.exists():
        raise MissingRecord(path, "a privacy statement")
    if path.stat().st_size > MAX_STATEMENT_BYTES:
        raise MalformedRecord(path, f"{path.stat().st_size} bytes", f"at most {MAX_STATEMENT_BYTES}")
    try:
        return msgspec.json.decode(path.read_bytes(), type=PrivacyStatement)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedRecord(path, str(error), "a privacy statement") from None
