"""A client's process, in straight lines: what it read, what it remembers, what it learns with, how it takes part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog
import torch

from codream_clients.data.understanding import Understanding, lines
from codream_clients.failures import Failures
from codream_clients.journal import FileJournal, JournalError
from codream_clients.learning.training import convergence_warnings_to
from codream_clients.privacy.accounting import SampledGaussian, concentrated_rho, epsilon_of, of_rho
from codream_clients.privacy.index import known_index, users_index
from codream_clients.privacy.ledger import Ledger, LedgerError
from codream_clients.privacy.plan import Planned, PrivacyPlan
from codream_clients.privacy.releases import Releases
from codream_clients.privacy.ring_plan import RingPlan
from codream_clients.privacy.sums_plan import SumsPlan
from codream_clients.runner import ClientRunner
from codream_protocols.charter import Charter, first_plan
from codream_protocols.client import Begun, ClientProtocol, Memory
from codream_protocols.course import Course
from codream_protocols.courses.sums import Sums
from codream_protocols.identity import Roster
from codream_protocols.record import Kept, certified_epochs
from secure_codream.configuration.assembly import load_client_data
from secure_codream.configuration.charter_file import charter_bytes
from secure_codream.configuration.client import ClientConfig, read_client
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import FederationConfig, read_federation
from secure_codream.configuration.images import what_was_understood
from secure_codream.configuration.learners import make_learner
from secure_codream.configuration.limits import (
    charges_sums,
    client_policy,
    earlier_parts,
    look_uncharged,
    open_client_ledger,
    open_ledger,
    spender,
    tells_accuracy,
)
from secure_codream.configuration.reading import ConfigError
from secure_codream.configuration.weights import first_weights
from secure_codream.deployment.blocks_answered import BlocksAnswered
from secure_codream.deployment.cores import shared_by
from secure_codream.deployment.description import Description, describe
from secure_codream.deployment.exhibit import ExhibitingClient
from secure_codream.deployment.exposure import all_noised, exposures
from secure_codream.deployment.files import FAILURES, LOG_BYTES, Appended, EventLog, never_fails
from secure_codream.deployment.masks import masks_on
from secure_codream.deployment.outputs import Counted, Outputs, OutputsUnwritten
from secure_codream.deployment.rounds import on_round_of
from secure_codream.deployment.signals import Stop, run_until_stopped, stopped_by_sigterm
from secure_codream.deployment.spans import watched
from secure_codream.deployment.statements import own_statement
from secure_codream.deployment.status import ClientPhase, StatusFiles, shown
from secure_codream.membership.accepted import check_accepted, expiry_warning, keep_in_record, load_roster, own_keys
from secure_codream.membership.keys import public_transport_key
from secure_codream.membership.passphrase import Passphrase
from secure_codream.reports.files import write_whole
from secure_codream.reports.signed_statement import signed
from secure_codream.reports.statement import write_statement

if TYPE_CHECKING:
    from torch import nn

    from codream_clients.data.datasets import LabelledImages
    from codream_clients.learning.judge import Judge
    from codream_clients.learning.participant import Metrics


@dataclass(frozen=True)
class Agreed:
    """What a client's own files say."""

    client: ClientConfig
    federation: FederationConfig
    roster: Roster
    charter: Charter
    course: Course


class LearnerFailed(RuntimeError):
    """The federation is over; zeros were summed where this client's learner failed, or it did not learn an epoch."""


class NoisedSums(Protocol):
    """Where noised sums are charged."""

    def reserve(self, charge: SampledGaussian) -> None:
        """Write a charge down for good."""


class ChargedJournal:
    """A client's journal that, before a step is begun, has its blocks remembered, and a noised one's charge written.

    The federation's record remembers too: an epoch that is certified with this client's own vote, which nobody else can
    sign, and that its journal has never joined, shows that an older copy of its folder was put back.

    Args:
        journal: the journal.
        ledger: of noised sums; None without them.
        of_records: charges a sum of this cost to the client's records, too; None where they have no budget, or paid
            before.
        remember: called before the first step of this process is begun.
        member: this client's number.
    """

    def __init__(
        self,
        journal: FileJournal,
        ledger: NoisedSums | None,
        remember: Callable[[], None],
        member: int,
        of_records: Callable[[float], object] | None = None,
    ) -> None:
        self._journal, self._ledger, self._remember, self._member = journal, ledger, remember, member
        self._of_records = of_records
        self._remembered, self._next_epoch = False, journal.memory.next_epoch

    def joined(self, epoch: int, plan: bytes) -> None:
        """See `codream_protocols.client.Journal`."""
        self._journal.joined(epoch, plan)
        self._next_epoch = epoch + 1

    def began(self, begun: Begun, rho: float) -> None:
        """See `codream_protocols.client.Journal`."""
        if not self._remembered:
            self._remember()
            self._remembered = True
        if rho > 0 and self._of_records is not None:
            self._of_records(rho)
        if rho > 0 and self._ledger is not None:
            self._ledger.reserve(of_rho(rho, "noised sum"))
        self._journal.began(begun, rho)

    def voted(self, kept: Kept) -> None:
        """See `codream_protocols.client.Journal`."""
        self._journal.voted(kept)

    def certified(self, kept: Kept) -> None:
        """See `codream_protocols.client.Journal`.

        Raises:
            JournalError: this client voted for the epoch, and does not remember that it joined it.
        """
        record, _ = kept
        if record.offer.epoch >= self._next_epoch and any(vote.member == self._member for vote in record.votes):
            raise JournalError(
                f"in the federation's record this client's own vote for epoch {record.offer.epoch}, and a journal that "
                f"has joined none from {self._next_epoch} on",
                "a folder that remembers what it has sent, learnt and charged",
                "an older copy was put back: put the newest back, or leave the federation",
            )
        self._journal.certified(kept)

    def saw_wrong_sum(self, plan: bytes) -> None:
        """See `codream_protocols.client.Journal`."""
        self._journal.saw_wrong_sum(plan)

    def recall(self, place: int) -> Kept:
        """See `codream_protocols.client.Journal`."""
        return self._journal.recall(place)


def read_agreed(folder: Path) -> Agreed:
    """Read a client's folder; raises as `run_client` does."""
    client = read_client(folder / "client.toml")
    roster = load_roster(folder, least_serial=client.least_roster_serial)
    roster.number_of(client.name)  # who is revoked accepts nothing
    federation = read_federation(folder / "config.toml")
    check_accepted(folder, federation, roster, client.name)  # before any code that the charter names is run
    charter, course = federation.charter(roster), make_course(federation, client.policy.code)
    first_plan(charter, course)  # before anything is trained for what can never run
    return Agreed(client, federation, roster, charter, course)


@stopped_by_sigterm()
def run_client(
    folder: Path,
    *,
    address: str | None = None,
    exhibit: tuple[int, int] | None = None,
    spans: bool = False,
    threads: int | None = None,
    model: nn.Module | None = None,
    data: tuple[LabelledImages, LabelledImages | None] | None = None,
    understood: Understanding | None = None,
    watch: Callable[[dict[str, Any]], object] | None = None,
    on_round: Callable[[Metrics], object] | None = None,
    stop: Stop | None = None,
) -> None:
    """Take part with the client of `folder` until the federation is over.

    Writes into the folder: `log.jsonl`; `status.json` and `metrics.prom`, how it stands; round by round,
    `metrics.jsonl` and `model.safetensors` (`checkpoint`); in the same form `best.safetensors`, the weights that its
    own judge finds best, and `teacher.safetensors`, those that make and label its dreams, where they are others;
    `journal/`, what it has joined, voted for and seen certified, which anybody can verify; at the end `privacy.json`
    and `privacy.html`, what the run may say about privacy, signed with this client's identity. In a federation with
    `[privacy]` also its ledger, `privacy.jsonl`, and what its mechanisms have released, `releases/`; in one with
    `[client_privacy]` the ledger of noised sums, `client_privacy.jsonl`. Nothing of it leaves the machine.

    A client that starts again goes on with its model, learns what was certified meanwhile, and takes part in no epoch
    twice. A model of another federation or other settings is not overwritten: it is refused.

    Args:
        folder: the client's folder.
        address: where the server listens; None takes the roster's.
        exhibit: (epoch, step) of which the plain encoded vector is written to `exhibit.npz` IN THIS FOLDER; for
            demonstrations on one machine, where the report shows it beside what the server saw.
        spans: whether `spans.json` is written, where the time went; for all machines of this process.
        threads: threads for torch, and for all machines of this process, which share long vectors among them; None
            leaves torch's own choice, and takes one for each core.
        model: replaces the configured model.
        data: replaces the configured data: (train, test or None).
        understood: how `data` was understood; that of the configured data is found here.
        watch: called with what each line of `log.jsonl` has.
        on_round: called with the figures after the warm-up and after each round, in the thread that learns; what it
            raises is logged by `secure_codream`'s logger, and ends nothing.
        stop: asks it to end, from another thread.

    Raises:
        Stopped: by SIGTERM, in the main thread, or by `stop`.
        AggregationFailed: the server has fallen silent.
        OutputsUnwritten: the federation is over, and the disk does not take what was learnt.
        LearnerFailed: the federation is over, and this client's learner failed in it.
        LedgerError: the privacy budget does not allow what is planned, or the ledger cannot be used.
        JournalError: this client is running already, or its journal is damaged or another charter's.
        CheckpointError: a model of another federation, or with other settings.
        NotAccepted: this client has not accepted this roster with these settings.
        UnsafePlan: its settings could never run.
        ConfigError, KeyFileError, RosterRefused, Revoked, BadSignature, CharterRefused: as their names say.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    passphrase = Passphrase()  # before own code of the charter is run, which would find it in the environment
    agreed = read_agreed(folder)
    client, federation, roster, charter = agreed.client, agreed.federation, agreed.roster, agreed.charter
    weights = first_weights(client, federation, given=model is not None)
    member = roster.number_of(client.name)
    transport_secret, signer = own_keys(folder, roster, client.name, passphrase)
    assert signer is not None  # noqa: S101 - a client's
    answered = BlocksAnswered(folder / "answered.json")
    cut = answered.check(
        roster,
        charter,
        roster.members[member].identity_key,
        permitted=bool(client.policy.cuts),
        noised=all_noised(agreed.course, charter),
    )
    with ExitStack() as opened:
        spent = opened.enter_context(watched(folder, spans))
        opened.enter_context(shared_by(threads))
        earlier = charter.earlier
        journal = opened.enter_context(
            FileJournal.open(folder / "journal", charter=charter.digest, member=client.name, first=earlier)
        )
        _keep_record(folder, agreed)
        phase = ClientPhase()
        log = _log_of(
            opened.enter_context(Appended(folder / "log.jsonl", most_bytes=LOG_BYTES)), phase.saw, never_fails(watch)
        )
        for line in [*exposures(federation, roster), *([cut] if cut else [])]:
            log.info("exposure", text=line)
        if (warning := expiry_warning(roster)) is not None:
            log.info("expiry", text=warning)
        opened.enter_context(convergence_warnings_to(lambda text: log.warning("training", found=text)))
        figures = EventLog(opened.enter_context(Appended(folder / "metrics.jsonl")))
        ledgers = _Ledgers(
            folder,
            agreed,
            opened,
            log,
            public=data is None and client.data.public,
            took_part=has_charged(journal.memory, federation),
        )
        if data is None and not isinstance(agreed.course, Sums):
            understood = what_was_understood(client.data, federation.task, private=federation.record_private)
        for line in [] if understood is None else lines(understood):
            log.info("data", text=line)
        private = federation.record_private
        outputs = Outputs(
            folder,
            figures,
            sums=isinstance(agreed.course, Sums),
            tells=not private and client.tell_accuracy is not False,
            failed=lambda name, error: log.error("storage-failed", found=f"{name}: {error.strerror or error}"),
        )
        opened.callback(outputs.close)  # before the journal is let go of
        images = None if isinstance(agreed.course, Sums) else load_client_data(client, federation, data)
        charge_sums = None if images is None else ledgers.of_sums(images[0])
        for text in [] if images is None else ledgers.look_uncharged(*images):
            log.warning("exposure", text=text)
        tell_round = on_round_of(on_round)

        def kept(metrics: Metrics) -> None:
            outputs.keep(metrics)
            tell_round(replace(metrics, rounds=outputs.learnt))
            if metrics.worse:
                log.warning("worse", **_fall(metrics, outputs.learnt))

        accelerator, hand_over = masks_on(client.device, charter.aggregation.suite, log, exhibited=exhibit is not None)
        learning = make_learner(
            client,
            federation,
            agreed.course,
            model=model,
            data=images,
            releases=ledgers.releases,
            ring=ledgers.ring,
            goes_on=outputs.exists,
            tells_accuracy=tells_accuracy(client, federation),
            on_metrics=kept,
            tell=lambda text: log.warning("answer", found=text),
            hand_over=hand_over,
        )
        description = None if images is None else _description(agreed, images[0], model, resized=data is None)
        certified = earlier + len(journal.memory.certified)
        learnt = outputs.take(learning.model, description, certified, learning.judge, learning.teacher)
        if learning.model is not None:
            log.info("judge", **_judged_by(learning.judge))
        protocol = _client_class(folder, exhibit)(
            charter=charter,
            roster=roster,
            course=agreed.course,
            member=member,
            signer=signer,
            policy=client_policy(client, federation, agreed.course),
            memory=_with_spent(journal.memory, ledgers.spent_rho),
            journal=ChargedJournal(journal, ledgers.sums, lambda: answered.add(roster, charter), member, charge_sums),
            accelerator=accelerator,
        )

        learner, failures = spent.learner(Counted(learning.learner, outputs)), _failures(folder, charter, outputs)

        def prepare() -> None:
            """Train before the first round, or go on with the model that is there and learn what it missed."""
            if outputs.exists:
                log.info("resume", model=_model_of(agreed), certified=learnt)
                learning.begin(learnt, outputs.teacher)
            else:
                log.info("warm-up", model=_model_of(agreed))
                learning.warm_up()
            epochs = certified_epochs(charter, roster, agreed.course, journal.memory.certified)
            for number, _, trajectory in epochs:
                failures.certified(trajectory.plan.digest, trajectory.counted(member))  # before it was killed
                publication = trajectory.publication()
                if number <= learnt:
                    runner.recall(number, partial(learning.recall, number, publication))
                else:
                    runner.learn(number, publication)

        runner = ClientRunner(
            protocol=protocol,
            learner=learner,
            roster=roster,
            transport_secret=transport_secret,
            transport_public=public_transport_key(transport_secret),
            epochs=agreed.course.epochs,
            address=address,
            proxy=client.proxy,
            prepare=prepare,
            patience=client.patience,
            most_steps=max(len(agreed.course.schedule(at)) for at in range(earlier, agreed.course.epochs)),
            spool=folder / "journal",
            failures=failures,
            log=log,
        )
        status = StatusFiles(folder, client.name, federation.federation.name, charter, agreed.course.epochs)

        def show() -> None:
            status.of_client(runner, agreed.course, protocol.certified, phase)

        def state() -> None:
            """What this run may say about privacy, with all that has been spent."""
            parts = ledgers.parts()
            stated = own_statement(
                federation,
                client.name,
                ledgers.own,
                charter,
                agreed.course,
                protocol.spent_rho,
                metrics_reported=tells_accuracy(client, federation),
                dealt_out=data is None and client.data.dealt,
                weights=weights,
                parts=parts,
                uncharged=ledgers.uncharged(parts.values()),
            )
            write_statement(folder, signed(stated, client.name, roster, signer))

        try:
            if protocol.history.over:
                prepare()  # all that there was to do is certified; what was missed is learnt now
                log.info("over", epochs=protocol.certified)
            else:
                run_until_stopped(shown(runner.run(), show), stop)
            ledgers.end()
        except BaseException:  # whatever has been spent is stated, also of a run that was cut short
            try:
                state()
            except (LedgerError, OSError) as error:  # what cut it short is what its person is to be told
                log.error("statement-failed", found=f"no statement of privacy was written: {error}")
            raise
        state()
        unwritten = _unwritten(outputs)
        if runner.failures:
            told = LearnerFailed(
                f"{folder}: the federation is over, but this client's part failed: {runner.failures}; log.jsonl says "
                f"why, and {FAILURES} keeps it"
            )
            raise LearnerFailed(f"{told}; and {unwritten}") if unwritten else told
        if unwritten:
            raise unwritten
        log.info("finished", compute_seconds=round(runner.compute_seconds, 3), head=protocol.head.hex())
        show()


def has_charged(memory: Memory, federation: FederationConfig) -> bool:
    """Whether a journal knows of a charge: the first comes before the first epoch is joined, the ring's with a step."""
    return (memory.next_epoch if federation.privacy is not None else memory.steps) > 0


class _Ledgers:
    """What a client's privacy costs: of its records, and of its noised sums; opened where the federation has them."""

    def __init__(
        self, folder: Path, agreed: Agreed, opened: ExitStack, log: Any, *, public: bool, took_part: bool
    ) -> None:
        self.own: Ledger | None = None
        self.sums: Ledger | None = None
        self.spent_rho = 0.0
        self._folder, self._agreed, self._opened, self._log = folder, agreed, opened, log
        self._public, self._took_part = public, took_part
        if agreed.federation.client_privacy is not None:
            path = folder / "client_privacy.jsonl"
            self.sums = opened.enter_context(open_client_ledger(path, agreed.client, agreed.federation))
            self.spent_rho = concentrated_rho(self.sums.charges)

    def releases(self, plan: PrivacyPlan, images: LabelledImages) -> Releases:
        """Where the mechanisms of a private client are charged, and what they have released before."""
        own = self._opened_for(plan, images)

        def reserve(charge: SampledGaussian) -> None:
            own.reserve(charge)
            self._log.info("privacy", **vars(charge))

        return Releases(
            reserve,
            self._folder / "releases",
            spender(self._agreed.client, self._agreed.federation, images).run,
            released=own.released,
            spent=own.own.released,
            unreleased=own.own.unreleased,
            resumes=True,
        )

    def _opened_for(self, plan: Planned, images: LabelledImages) -> Ledger:
        """The ledger of the client's images, with all that is planned reserved."""
        index = None if self._public else users_index()
        ledger = open_ledger(
            self._folder / "privacy.jsonl",
            self._agreed.client,
            self._agreed.federation,
            plan,
            images,
            index=index,
            took_part=self._took_part,
        )
        self.own = self._opened.enter_context(ledger)
        if ledger.own.open:
            begun = epsilon_of(ledger.earlier, ledger.budget.delta, ledger.budget.accountant)
            told = {"charges": len(ledger.own.open), "epsilon": round(ledger.spent, 4), "earlier": round(begun, 4)}
            self._log.info("reserved", **told)
        return ledger

    def of_sums(self, images: LabelledImages) -> Callable[[float], object] | None:
        """Where a noised sum is charged to the records that have a budget; all that are planned are reserved."""
        agreed = self._agreed
        if not charges_sums(agreed.client, agreed.federation):
            return None
        plan = SumsPlan.of(agreed.course, agreed.charter)
        ledger = self._opened_for(plan, images)
        return lambda rho: ledger.reserve(plan.charge_of(rho))

    def look_uncharged(self, train: LabelledImages, test: LabelledImages | None) -> list[str]:
        """What to say, and to remember, of images that have a ledger, where nothing is charged; raises `HasLedger`."""
        client, federation = self._agreed.client, self._agreed.federation
        index = None if self._public else known_index()
        found = look_uncharged(client, federation, train, test, index)
        for ledger in {ledger for one in found for ledger in one.ledgers}:
            assert index is not None  # noqa: S101 - it has found them
            index.note_uncharged(ledger, federation.federation.name, client.name)
        return [one.text for one in found]

    def parts(self) -> dict[Path, Ledger]:
        """The ledgers of earlier parts of the data."""
        return earlier_parts(self._agreed.client, None if self._public else known_index())

    def uncharged(self, parts: Iterable[Ledger]) -> list[str]:
        """Who has trained on the same images, those of earlier parts too, and charged nothing; in words."""
        index = known_index()
        if self.own is None or index is None:
            return []
        return [said for one in (self.own, *parts) for said in index.uncharged(one.name)]

    def ring(self, images: LabelledImages) -> Callable[[SampledGaussian], object]:
        """Where steps of DP-SGD through the ring are charged; all that are planned are reserved."""
        return self._opened_for(RingPlan.of(self._agreed.course, self._agreed.charter), images).reserve

    def end(self) -> None:
        """Give back what was reserved and never begun: the federation is over."""
        if self.own is not None:
            self.own.end()


def _failures(folder: Path, charter: Charter, outputs: Outputs) -> Failures:
    """What came of this client's failures so far, also in earlier processes."""
    path = folder / FAILURES
    content = path.read_bytes() if path.exists() else None
    try:
        return Failures(charter.digest.hex(), content, lambda content: outputs.put(FAILURES, content))
    except ValueError as error:
        raise ConfigError(f"{path}: found {error}; restore it from a copy, or move it away") from error


def _unwritten(outputs: Outputs) -> OutputsUnwritten | None:
    try:
        outputs.settle()
    except OutputsUnwritten as error:
        return error
    return None


def _model_of(agreed: Agreed) -> str | None:
    """The name of the model that is trained; sums have none."""
    if agreed.federation.federation.course == "sums":
        return None
    if agreed.federation.dp_sgd is not None:  # the common model, or one that it is handed down to
        return agreed.client.model
    return agreed.federation.common_model or agreed.client.model


def _description(agreed: Agreed, images: LabelledImages, model: nn.Module | None, *, resized: bool) -> Description:
    """Of this client's model, or of the one that a script gave; `resized` where the configuration read the images."""
    client = agreed.client
    return describe(
        client,
        agreed.federation,
        images,
        charter=agreed.charter.digest,
        model=_model_of(agreed) if model is None else None,
        resized=resized and client.data.size is not None,
    )


def _judged_by(judge: Judge | None) -> dict[str, Any]:
    if judge is None:
        return {"images": 0, "held_back": False, "sees_all": False}
    return {"images": judge.images, "held_back": judge.held_back, "sees_all": judge.sees_all}


def _fall(metrics: Metrics, round: int) -> dict[str, Any]:
    """What the log says of a round that left a worse model."""
    names = ("judged_by", "held_back", "held_accuracy", "held_recall", "best_accuracy", "best_recall", "best_round")
    return {"rolled_back": metrics.rolled_back, "round": round, **{name: getattr(metrics, name) for name in names}}


def _with_spent(memory: Memory, spent_rho: float) -> Memory:
    """What the ledger of noised sums says counts, if it says more than the journal."""
    return replace(memory, rho=max(memory.rho, spent_rho))


def _keep_record(folder: Path, agreed: Agreed) -> None:
    """Beside the epochs in the journal, what is needed to verify them."""
    write_whole(folder / "journal" / "roster.json", (folder / "roster.json").read_bytes())
    write_whole(folder / "journal" / "charter.json", charter_bytes(agreed.federation, agreed.roster))
    keep_in_record(folder, folder / "journal", agreed.charter, agreed.roster)


def _client_class(folder: Path, exhibit: tuple[int, int] | None) -> Any:
    if exhibit is None:
        return ClientProtocol

    def made(**arguments: Any) -> ClientProtocol:
        return ExhibitingClient(folder / "exhibit.npz", exhibit, **arguments)

    return made


def _log_of(file: Any, *watching: Callable[[dict[str, Any]], object]) -> Any:
    def watched(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for watch in watching:
            watch(dict(event))
        return event

    return structlog.wrap_logger(
        structlog.WriteLogger(file),
        processors=[
            structlog.processors.add_log_level,
            watched,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
    )
