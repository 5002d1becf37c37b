"""The commands of a privacy ledger: what is spent, what a run would cost, whether the files are whole, and two changes.

A ledger is named by its file, or by the folder of a client whose `client.toml` says where it lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from secure_codream.command_parts import Json, console, fail, say, say_json

if TYPE_CHECKING:
    from codream_clients.privacy.ledger import Ledger
    from secure_codream.reports.statement import RecordLevel

ledger = typer.Typer(help="The ledger of what a client's images have spent, in all federations.")

Where = Annotated[Path, typer.Argument(exists=True, help="A client's folder, or a ledger's file.")]
Anchor = Annotated[Path | None, typer.Option(help="Where the anchor of a ledger's file lies; beside it otherwise.")]


@ledger.command(epilog="Example: secure-codream ledger show sites/alice")
def show(where: Where, anchor: Anchor = None, json: Json = False) -> None:
    """Say what is spent and reserved, by which federation, and what is left. Nothing is written."""
    found = _looked(where, anchor)
    parts = _parts(where)
    content = {
        **_content(found),
        "parts": [{"path": str(path), **_content(part)} for path, part in parts],
        "uncharged": _uncharged([found, *dict(parts).values()]),
    }
    if json:
        say_json(content)
        return
    screen = console()
    say(screen, _sentence(found))
    for path, part in parts:
        say(screen, f"earlier part {path}: {_sentence(part)}")
    if parts:
        most = max(one.spent for one in (found, *dict(parts).values()))
        say(screen, f"an image is in one part, and has cost epsilon {most:.4g} at most")
    for said in content["uncharged"]:
        say(screen, f"without a bound, and charged nothing: {said}", style="yellow")
    table = Table("federation", "member", "what", "noise", "rate", "steps", "begun (UTC)", "released")
    for row in content["charges"]:
        table.add_row(
            row["federation"],
            row["member"],
            row["purpose"],
            f"{row['noise_multiplier']:.4g}",
            f"{row['sample_rate']:.4g}",
            str(row["steps"]),
            row["began"] or "reserved",
            "" if row["began"] is None else ("yes" if row["released"] else "no"),
        )
    screen.print(table)


@ledger.command(epilog="Example: secure-codream ledger plan sites/alice")
def plan(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A client's folder.")], json: Json = False
) -> None:
    """Say what a run from this folder would cost: noise, rate, steps, what is left. Nothing is reserved.

    Exit code 1 if it does not fit into the budget.
    """
    from secure_codream.configuration.client import read_client
    from secure_codream.configuration.federation import read_federation
    from secure_codream.deployment.budget import dry_run

    run = dry_run(folder, read_client(folder / "client.toml"), read_federation(folder / "config.toml"))
    if json:
        say_json({**asdict(run), "left": run.left})
        return
    screen = console()
    if run.sums:
        say(screen, f"{run.federation}: {run.steps} noised sums, in which all of {run.records:,} images take part")
        say(screen, f"noise in each: {run.noise_multiplier:.4g} times what one image more or less moves it by, or more")
    else:
        say(
            screen,
            f"{run.federation}: {run.steps} steps of DP-SGD, batches of {run.batch_size} of {run.records:,} images",
        )
        say(screen, f"each image takes part in a step with probability {run.sample_rate:.4g}")
        say(screen, f"noise in each step: {run.noise_multiplier:.4g} times the clipping bound")
    say(
        screen,
        f"epsilon {run.planned:.4g} by itself; {run.spent:.4g} of {run.epsilon:g} at delta {run.delta:g} is spent or "
        f"reserved; {run.together:.4g} together, which leaves {run.left:.4g}",
    )
    if run.earlier:
        say(
            screen,
            f"epsilon {run.earlier:.4g} of that {run.member} has begun in {run.federation} before, with other settings "
            "or images, or under an earlier charter; this run is paid for beside it",
        )
    for remark in run.remarks:
        say(screen, "warning: " + "; ".join(filter(None, remark)), style="yellow")


@ledger.command(epilog="Example: secure-codream ledger verify sites/alice")
def verify(where: Where, anchor: Anchor = None, json: Json = False) -> None:
    """Check that the ledger is whole: every entry, its anchor, and what this user's index has seen of it.

    So it does with those of earlier parts that client.toml names.

    Exit code 1 says what is wrong.
    """
    from codream_clients.privacy.index import users_index
    from codream_clients.privacy.ledger import LedgerError

    try:
        index = users_index()
        found = _looked(where, anchor, memory=index)
        _parts(where, index)
    except LedgerError as error:
        fail(str(error), 1)
    if json:
        say_json({"entries": found.entries, "head": found.head, "ledger": found.name})
        return
    say(console(), f"whole: {found.entries} entries; head {found.head}")


@ledger.command(epilog="Example: secure-codream ledger statement sites/alice")
def statement(
    where: Annotated[Path, typer.Argument(exists=True, help="A client's folder, or its privacy.json.")],
    roster: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The roster it was made under; what lies beside it otherwise."),
    ] = None,
    administrator: Annotated[
        str | None, typer.Option(help="Who must have signed the roster: a fingerprint, as it is read out.")
    ] = None,
    json: Json = False,
) -> None:
    """Check a client's privacy statement: who signed it, that nothing was changed, and its ledger where that is there.

    Exit code 1 says what is wrong.
    """
    from secure_codream.deployment.verify_statement import StatementRefused, verify_statement

    try:
        found = verify_statement(where, roster=roster, administrator=administrator)
    except StatementRefused as error:
        fail(str(error), 1)
    said = found.statement
    later = _since(where, said.record)
    unsaid = [] if later is None else _unsaid(where, said.uncharged)
    if json:
        say_json(
            {
                "party": said.party,
                "run": said.run,
                "date": said.date,
                "members": said.members,
                "serial": said.serial,
                "administrator": found.administrator,
                "compared": found.compared,
                "entries_since": later,
                "uncharged_since": unsaid,
                "headline": said.headline,
            }
        )
        return
    screen = console()
    say(screen, f"Signed by {said.party} of {', '.join(said.members)}; federation {said.run}, {said.date}")
    known = "as given" if found.compared else "compare it with what the administrator reads out"
    say(
        screen, f"Roster {said.serial} signed by the administrator with the fingerprint {found.administrator}; {known}."
    )
    say(screen, said.headline)
    if said.audit is not None:
        say(screen, "The audit in it was added afterwards, and is not signed.", style="yellow")
    if later:
        say(screen, f"The ledger has more by now: {later:,} entries since.", style="yellow")
    for one in unsaid:
        say(screen, f"Since then without a bound, and charged nothing: {one}", style="yellow")


def _since(where: Path, record: RecordLevel | None) -> int | None:
    """How many entries a client's ledger has beyond its statement; None where no ledger is beside it.

    Ends with exit code 1 if the ledger that is there is not the stated one.
    """
    if record is None or not where.is_dir() or not (where / "client.toml").exists():
        return None
    found = _looked(where, None)
    known = (one for one in record.members if one.ledger == found.name and found.had(one.entries, one.head))
    if (stated := next(known, None)) is None:
        fail(f"{where}: found a ledger that is not the statement's, or an older copy of it; put its newest one back", 1)
    return found.entries - stated.entries


def _unsaid(where: Path, said: Sequence[str]) -> list[str]:
    """Who has trained on the same images and charged nothing, and does not stand in the statement: no entry tells."""
    return [one for one in _uncharged([_looked(where, None), *dict(_parts(where)).values()]) if one not in said]


@ledger.command(epilog="Example: secure-codream ledger reissue sites/alice --epsilon 8 --delta 1e-6")
def reissue(
    where: Where,
    epsilon: Annotated[float, typer.Option(help="What all together may cost a record from now on.")],
    delta: Annotated[float, typer.Option(help="Chance that the bound fails.")],
    anchor: Anchor = None,
    json: Json = False,
) -> None:
    """Change the budget, smaller or larger, from now on. What is spent stays spent. Write the same into client.toml."""
    from codream_clients.privacy.ledger import Budget

    with _opened(where, anchor) as found:
        found.reissue(Budget(epsilon, delta, found.budget.accountant))
        _tell(found, json=json)


@ledger.command(epilog="Example: secure-codream ledger end sites/alice --federation lungs")
def end(
    where: Where,
    federation: Annotated[str, typer.Option(help="Whose reservation is given back.")],
    anchor: Anchor = None,
    json: Json = False,
) -> None:
    """Give back what a federation reserved and never began, if it will not go on. What it began stays spent."""
    path, beside = _places(where, anchor)
    spenders = [by for by in _looked(where, anchor).accounts if by.federation == federation]
    if not spenders:
        fail(f"{path}: found nothing of {federation!r}; `ledger show` says whose there is", 2)
    for by in spenders:
        with _opened(where, anchor, by) as found:
            found.end()
    _tell(_looked(where, beside), json=json)


def _places(where: Path, anchor: Path | None) -> tuple[Path, Path | None]:
    if not where.is_dir():
        return where, anchor
    from secure_codream.configuration.client import read_client
    from secure_codream.configuration.limits import anchor_path, ledger_path

    client = read_client(where / "client.toml")
    return ledger_path(where / "privacy.jsonl", client), anchor or anchor_path(client)


def _parts(where: Path, memory: Any = None) -> list[tuple[Path, Ledger]]:
    """The ledgers of earlier parts of a client's data; a ledger's file names none."""
    if not where.is_dir():
        return []
    from secure_codream.configuration.client import read_client
    from secure_codream.configuration.limits import earlier_parts

    return list(earlier_parts(read_client(where / "client.toml"), memory).items())


def _uncharged(found: list[Ledger]) -> list[str]:
    """Who has trained on images of these ledgers, and charged nothing."""
    from codream_clients.privacy.index import known_index

    index = known_index()
    return [] if index is None else [said for one in found for said in index.uncharged(one.name)]


def _looked(where: Path, anchor: Path | None, memory: Any = None) -> Ledger:
    from codream_clients.privacy.ledger import Ledger, LedgerMismatch, Spender

    path, beside = _places(where, anchor)
    found = Ledger.look(path, by=Spender("nobody", "nobody"), budget=None, anchor=beside, memory=memory)
    if found is None:
        raise LedgerMismatch(f"{path}: found no ledger; the first private run begins it")
    return found


def _opened(where: Path, anchor: Path | None, by: Any = None) -> Ledger:
    from codream_clients.privacy.index import users_index
    from codream_clients.privacy.ledger import Ledger, Spender

    path, beside = _places(where, anchor)
    return Ledger.open(path, by=by or Spender("nobody", "nobody"), budget=None, anchor=beside, memory=users_index())


def _tell(found: Ledger, *, json: bool) -> None:
    """How it stands after a change."""
    if json:
        say_json(_content(found))
    else:
        say(console(), _sentence(found))


def _sentence(found: Ledger) -> str:
    budget = found.budget
    return (
        f"epsilon {found.spent:.4g} of {budget.epsilon:g} at delta {budget.delta:g} is spent or reserved, counted by "
        f"{budget.accountant}; {found.left:.4g} is left"
    )


def _content(found: Ledger) -> dict[str, Any]:
    charges = [
        {"federation": by.federation, "member": by.member, **vars(charge), "began": began, "released": released}
        for by, account in found.accounts.items()
        for charge, began, released in [
            *(
                # A step in the ring is written down as it is handed over, and is never made anew.
                (charge, time.isoformat(), charge.discrete or charge in account.released)
                for charge, time in zip(account.begun, account.times, strict=True)
            ),
            *((charge, None, False) for charge in account.open),
        ]
    ]
    budget = found.budget
    return {
        "ledger": found.name,
        "entries": found.entries,
        "head": found.head,
        "epsilon": budget.epsilon,
        "delta": budget.delta,
        "accountant": budget.accountant,
        "spent": found.spent,
        "left": found.left,
        "charges": charges,
    }
