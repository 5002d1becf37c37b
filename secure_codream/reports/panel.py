"""The live panel of a federation, and the table of its results.

The panel is a view of the server's events and of nothing else: each event changes a few fields, and
drawing reads them. What it shows of the clients' data (entropy, accuracy) are the securely aggregated
means that the events carry. On a terminal it is redrawn in place; elsewhere (a file, a pipe, a log) it
says one plain line for each round and for each thing that went wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from secure_codream.reports.events import (
    ClientJoined,
    ClientLost,
    EpochGivenUp,
    EpochResumed,
    EpochStarted,
    Event,
    FederationFinished,
    FederationStarted,
    Refused,
    RoundFinished,
    StepFinished,
    StepStarted,
    StorageFailed,
    Waiting,
    parse_event,
)
from secure_codream.reports.judgements import rolled_back_note
from secure_codream.reports.summary import Summary
from secure_codream.reports.words import clock_face, counted, format_bytes

TASKS = {
    "update": "dream update",
    "logits": "soft labels",
    "metrics": "metrics",
    "generator": "generator update",
    "parameters": "parameters",
}

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = ".:-=+*%#"
_SPARKLINE_WIDTH = 24
_WIDEST = 96


class LivePanel:
    """Shows a federation while it runs; use it as a context manager.

        with LivePanel() as panel:
            panel.phase("starting 5 clients")
            for event in events:
                panel.feed(event)

    `feed` takes the server's events as they are in `events.jsonl`; unknown kinds are passed over, and a
    malformed one raises ValueError. `clock` gives seconds, for the elapsed time.
    """

    def __init__(self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(emoji=False)
        self._clock = clock
        self._began = clock()
        self._live: Live | None = None

        self._phase = "starting"
        self._clients: list[str] = []
        self._joined: set[str] = set()
        self._lost: set[str] = set()
        self._left_out: set[str] = set()
        self._rounds = 0
        self._steps_per_round = 0
        self._round = 0
        self._steps_done = 0
        self._step: StepStarted | None = None
        self._last: StepFinished | None = None
        self._entropies: list[float] = []
        self._accuracies: list[float] = []
        self._refusals = 0
        self._disk_failures = 0
        self._finished = False

    def __enter__(self) -> LivePanel:
        self._began = self._clock()
        if self._console.is_terminal:
            self._live = Live(self, console=self._console, refresh_per_second=8, transient=False)
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, traceback)
            self._live = None

    def phase(self, text: str) -> None:
        """Say what is going on outside the rounds: "starting 5 clients", "training the baselines"."""
        self._phase = _printable(text)
        self._say(self._phase)

    def feed(self, event: Mapping[str, Any] | Event) -> None:
        """Take one event of the server."""
        parsed = parse_event(event) if isinstance(event, Mapping) else event
        if parsed is not None:
            self._take(parsed)

    def _take(self, event: Event) -> None:
        match event:
            case FederationStarted():
                self._clients = list(event.clients)
                self._rounds, self._steps_per_round = event.rounds, event.steps_per_round
                self._phase = "waiting for the clients"
                steps = f"{counted(event.rounds, 'round')} of {counted(event.steps_per_round, 'secure step')}"
                self._say(f"{len(event.clients)} clients, {steps}")
            case ClientJoined():
                self._joined.add(event.client)
                self._lost.discard(event.client)
                there = len(self._joined - self._lost)
                of = f"{there} of {len(self._clients)}" if self._clients else str(there)
                self._say(f"{_printable(event.client)} joined: {of}")
            case ClientLost():
                self._lose({event.client})
            case EpochStarted():
                if event.round != self._round:
                    self._entropies.clear()
                self._round, self._steps_done, self._step = event.round, 0, None
                self._phase = f"setting up keys with {len(event.cohort)} clients"
            case EpochResumed():
                self._round, self._steps_done, self._step = event.round, event.step or 0, None
                at = "" if event.step is None else f", at step {event.step + 1}"
                self._phase = f"going on in round {event.round + 1}{at}"
                self._say(self._phase)
            case EpochGivenUp():
                self._step = None
                self._phase = f"starting again: {_printable(event.reason)}"
                self._say(f"round {event.round + 1}: epoch given up, {_printable(event.reason)}")
            case Waiting():
                self._wait(event)
            case StepStarted():
                self._round, self._step = event.round, event
            case StepFinished():
                self._last, self._steps_done = event, event.step + 1
                self._leave_out(set(event.dropped))
                self._lost -= set(event.survivors)
                if event.entropy is not None:
                    self._entropies.append(event.entropy)
            case RoundFinished():
                self._step, self._phase = (
                    None,
                    "clients learn from the dreams" if event.learnt else "all rounds are over",
                )
                accuracy = event.metrics.get("accuracy")
                if accuracy is not None:
                    self._accuracies.append(accuracy)
                self._say(self._round_line(event))
            case Refused():
                self._refusals += not event.ordinary
                if not event.ordinary:
                    self._say(_refusal(event))
            case StorageFailed():
                self._disk_failures = event.count
                self._say(f"cannot write the {_printable(event.what)}, trying again: {_printable(event.reason)}")
            case FederationFinished():
                self._finished, self._step, self._phase = True, None, "finished"
                self._say(f"finished {counted(event.rounds, 'round')} in {clock_face(self._elapsed())}")

    def _wait(self, event: Waiting) -> None:
        ago = {name: f" (last heard {clock_face(seconds)} ago)" for name, seconds in event.heard.items()}
        names = _some(sorted(event.lost or event.clients), ago) or "answers of some that are there"
        late = event.phase == "finished"
        away = "lost" if (self._joined | self._lost).intersection(event.lost) else "not there yet"
        why = "who may have missed the end" if late else away if event.lost else event.phase
        refusing = "".join(f"; {_printable(name)} refuses ({code})" for name, code in sorted(event.refusing.items()))
        bound = f"; {_some(sorted(event.bound))} voted for sums that are not here" if event.bound else ""
        self._phase = f"waiting for {names}, {why}, {clock_face(event.seconds)}{_printable(refusing)}{bound}"
        self._step = None if event.lost or event.bound else self._step
        if self._joined or late:
            self._say(self._phase)

    def _leave_out(self, names: set[str]) -> None:
        """Of those not in a sum, some were lost, and the others share a block with one that was."""
        if names and names != self._left_out:
            self._say(f"not in the sum, with their block: {_some(sorted(names))}")
        self._left_out = names

    def _lose(self, names: set[str]) -> None:
        for name in sorted(names - self._lost):
            self._say(f"lost {_printable(name)}")
        self._lost |= names

    # --- without a terminal

    def _say(self, line: str) -> None:
        if not self._console.is_terminal:
            # A line stays a line, whatever the width; names are text, never markup.
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _round_line(self, event: RoundFinished) -> str:
        parts = ["all rounds are over"] if not event.learnt else [f"round {event.round + 1} of {self._rounds}"]
        if self._last is not None:
            parts.append(f"{len(self._last.survivors)} of {len(self._clients)} clients")
        if self._entropies:
            parts.append(f"entropy {self._entropies[0]:.2f} to {self._entropies[-1]:.2f}")
        if (accuracy := event.metrics.get("accuracy")) is not None:
            parts.append(f"mean accuracy{_when(event.metrics_round)} {accuracy:.1%}")
        if self._last is not None:
            parts.append(f"{format_bytes(self._last.bytes_up)} up, {format_bytes(self._last.bytes_down)} down")
        parts.append(clock_face(self._elapsed()))
        return "; ".join(parts)

    # --- on a terminal

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the panel as it stands."""
        width = min(options.max_width, _WIDEST)
        rows = Table.grid(padding=(0, 2), expand=True)
        rows.add_column(style="dim", no_wrap=True, width=8)
        # A row stays a row, so that the panel keeps its height.
        rows.add_column(ratio=1, no_wrap=True, overflow="crop" if options.ascii_only else "ellipsis")
        if self._rounds:
            rows.add_row("round", self._round_row())
            rows.add_row("", ProgressBar(total=1.0, completed=self._progress(), width=width - 16))
            rows.add_row("clients", self._clients_row())
            rows.add_row("entropy", self._entropy_row(_ASCII_BLOCKS if options.ascii_only else _BLOCKS))
            rows.add_row("traffic", self._traffic_row())
            rows.add_row("accuracy", self._accuracy_row())
        else:
            rows.add_row("now", self._phase_text())
            rows.add_row("clients", Text(", ".join(map(_printable, sorted(self._joined))) or "-"))
        yield Panel(
            rows,
            title="[bold]Secure CoDream[/]",
            title_align="left",
            subtitle=clock_face(self._elapsed()),
            subtitle_align="right",
            border_style="green" if self._finished else "blue",
            padding=(0, 1),
            width=width,
        )

    def _round_row(self) -> Text:
        shown = min(self._round + 1, self._rounds)
        text = Text.assemble((f"{shown}", "bold"), f" of {self._rounds}   ", overflow="ellipsis")
        if self._step is None:
            return text.append_text(self._phase_text())
        text.append(f"step {self._step.step + 1} of {self._steps_per_round}   ")
        return text.append(TASKS.get(self._step.task, _printable(self._step.task)), "cyan")

    def _phase_text(self) -> Text:
        return Text(self._phase, style="green" if self._finished else "cyan")

    def _progress(self) -> float:
        if self._finished:
            return 1.0
        within = min(1.0, self._steps_done / max(1, self._steps_per_round))
        return min(1.0, (self._round + within) / self._rounds)

    def _clients_row(self) -> Text:
        counted = self._joined - self._lost if self._last is None else self._last.survivors
        text = Text.assemble((f"{len(counted)}", "bold" if not self._lost else "bold yellow"))
        text.append(f" of {len(self._clients)} {'there' if self._last is None else 'in the sum'}")
        if self._lost:
            text.append(f"   lost: {_some(sorted(self._lost))}", "yellow")
        if self._refusals:
            text.append(f"   refusals: {self._refusals}", "red")
        if self._disk_failures:
            text.append(f"   disk failures: {self._disk_failures}", "red")
        if self._last is not None and self._last.path == "dropout":
            text.append("   dropout path", "yellow")
        return text

    def _entropy_row(self, blocks: str) -> Text:
        if not self._entropies:
            return Text("-", "dim")
        text = Text.assemble((f"{self._entropies[-1]:.3f}", "bold"), " nats   ")
        return text.append(sparkline(self._entropies, _SPARKLINE_WIDTH, blocks), "magenta")

    def _traffic_row(self) -> Text:
        if self._last is None:
            return Text("-", "dim")
        up, down = format_bytes(self._last.bytes_up), format_bytes(self._last.bytes_down)
        return Text.assemble(f"{up} up   {down} down   ", ("all clients", "dim"))

    def _accuracy_row(self) -> Text:
        if not self._accuracies:
            return Text("-", "dim")
        *earlier, latest = (f"{accuracy:.1%}" for accuracy in self._accuracies[-5:])
        text = Text("".join(f"{accuracy}, " for accuracy in earlier), "dim")
        return text.append(latest, "bold not dim").append("   mean, alone and by round", "dim")

    def _elapsed(self) -> float:
        return self._clock() - self._began


def _refusal(event: Refused) -> str:
    """In full where it was this side that refused; of a member's refusal its code, and what every such one says."""
    who, code = _printable(event.client), _printable(event.code)
    if event.by == "client":
        allowed = f"; it takes {_printable(event.allowed)}" if event.allowed else ""
        return f"{who} refuses: {code}{allowed}; its own screen says why"
    words = [
        f"{name} {_printable(text)}" for name, text in (("found", event.found), ("allowed", event.allowed)) if text
    ]
    return "; ".join([f"refused: {who}, {code}", *words])


def result_table(summary: Summary) -> Table:
    """The results of a run: each client, the means, and the references."""
    accuracy = summary.accuracy
    table = Table(title="Test accuracy", title_justify="left", title_style="bold", caption_justify="left")
    table.add_column("client", overflow="ellipsis", no_wrap=True)
    table.add_column("model", overflow="ellipsis", no_wrap=True)
    for heading in ("images", "alone", "CoDream", "gain"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, model, counts, alone, together in zip(
        summary.client_names,
        summary.models,
        summary.label_counts,
        accuracy.independent.clients,
        accuracy.codream.clients,
        strict=True,
    ):
        table.add_row(
            Text(_printable(name)),
            Text(_printable(model)),
            str(sum(counts)),
            f"{alone:.1%}",
            Text("lost", "yellow") if together is None else f"{together:.1%}",
            "" if together is None else _gain(together - alone),
        )
    table.add_section()
    means = accuracy.finishers_alone, accuracy.codream.mean
    whose = "mean of finishers" if None in accuracy.codream.clients else "mean"
    table.add_row(whose, "", "", f"{means[0]:.1%}", f"{means[1]:.1%}", _gain(means[1] - means[0]), style="bold")
    table.add_section()
    table.add_row("all data in one place", "", "", "", f"{accuracy.centralised:.1%}", "")
    if accuracy.student is not None:
        table.add_row("student, dreams alone", "", "", "", f"{accuracy.student:.1%}", "")
    if summary.gap_closure is not None:
        table.add_row("gap closure", "", "", "", f"{summary.gap_closure:.2f}", "", style="bold")
    traffic, duration = summary.bytes, clock_face(summary.seconds.total)
    caption = (
        f"{counted(summary.rounds, 'round')}, {counted(summary.secure_steps, 'secure step')}, {duration}\n"
        f"{format_bytes(traffic.up_per_client)} up, {format_bytes(traffic.down_per_client)} down a client"
    )
    note = rolled_back_note(summary.rolled_back)
    table.caption = f"{caption}\n{_printable(note)}" if note else caption
    return table


def sparkline(values: Sequence[float], width: int, blocks: str = _BLOCKS) -> str:
    """A line of blocks from 0 to the greatest value; more values than `width` are thinned out evenly."""
    if len(values) > width:
        last = len(values) - 1
        values = [values[round(i * last / (width - 1))] for i in range(width)]
    top = max(values, default=0.0)
    if top <= 0:
        return blocks[0] * len(values)
    return "".join(blocks[min(len(blocks) - 1, max(0, int(value / top * len(blocks))))] for value in values)


def _gain(difference: float) -> Text:
    return Text(f"{100 * difference:+.1f}", "green" if difference > 0 else "red")


def _when(rounds: int | None) -> str:
    """Of which models a round's metrics are."""
    if rounds is None:
        return ""
    return " alone" if rounds == 0 else f" after {counted(rounds, 'round')}"


def _some(names: Sequence[str], notes: Mapping[str, str] | None = None, most: int = 3) -> str:
    shown = ", ".join(_shortened(_printable(name)) + (notes or {}).get(name, "") for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _shortened(name: str, width: int = 20) -> str:
    return name if len(name) <= width else name[: width - 3] + "..."


def _printable(text: str) -> str:
    """`text` without control characters: a name must not move a terminal's cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)
