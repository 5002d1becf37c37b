"""Federations of processes to which something happens: kills at random instants, lines that break, machines that stop.

An instant is so many events of the server later, and some milliseconds: so it falls into whatever the server does, on a
slow machine as on a fast one.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TextIO

from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import FederationConfig
from secure_codream.deployment.provision import provision
from tests.system.processes import ENVIRONMENT, SECURE_CODREAM, client_command

LATENCY = 0.05  # seconds each way, as between towns
PATIENCE = 600.0  # seconds for a test to wait for what must happen


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Wait for something to happen; fails when it does not."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found


class Running(Protocol):
    """What is needed of a process: of `subprocess.Popen`."""

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


class Line:
    """A TCP line to a port of this machine, `LATENCY` long. Where it is cut nothing passes, and nobody answers."""

    def __init__(self, port: int) -> None:
        self._target, self._up = port, threading.Event()
        self._up.set()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        self._up.clear()
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._up.set()

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if not self._up.is_set():
                    raise ConnectionRefusedError
                far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
                far.settimeout(None)
            except OSError:  # it is cut, or the server is not there
                near.close()
                continue
            for one, other in ((near, far), (far, near)):
                self._open.add(one)
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                time.sleep(LATENCY)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()
        self._open.discard(source)


def dreams(steps: int) -> dict[str, Any]:
    """Tables of a federation that dreams so many steps a round."""
    return {
        "dreams": {"batch": 4, "steps": steps, "window": 1000},
        "learning": {"warm_up_epochs": 1, "distil_epochs": 1, "local_steps": 1},
    }


class Night:
    """A provisioned federation of three, on digits, whose server has one port for all its lives.

    Args:
        folder: made.
        rounds: of the course.
        seed: of what happens.
        course: its name.
        tables: the course's own.
        client: what each client has in the place of "mlp" and of nothing.
        timing: the server's.
    """

    NAMES = ("a", "b", "c")

    def __init__(
        self,
        folder: Path,
        *,
        rounds: int,
        seed: int,
        tables: Mapping[str, Any],
        course: str = "codream",
        client: Mapping[str, Any] = MappingProxyType({}),
        **timing: float,
    ) -> None:
        config = FederationConfig.model_validate(
            {
                "federation": {"rounds": rounds, "name": "night", "course": course},
                "task": {"shape": (1, 8, 8), "classes": 10},
                "timing": timing,
                **tables,
            }
        )
        clients = [
            ClientConfig.model_validate(
                {
                    "name": name,
                    "model": "mlp",
                    "device": "cpu",
                    "data": {"clients": 3, "part": part, "per_client": 20},
                    **client,
                }
            )
            for part, name in enumerate(self.NAMES)
        ]
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        provision(folder, config=config, clients=clients, address=f"tcp://127.0.0.1:{self.port}")
        self.folder, self.rounds, self.chance = folder, rounds, random.Random(seed)
        self.lines = {name: Line(self.port) for name in self.NAMES}
        self.running: dict[str, Running] = {}
        self._events: list[dict[str, Any]] = []
        self._read = 0

    # -- processes ---------------------------------------------

    def party(self, name: str) -> Path:
        return self.folder / "server" if name == "server" else self.folder / "clients" / name

    def command(self, name: str) -> list[str | Path]:
        if name == "server":
            return [*SECURE_CODREAM, "server", self.party(name), "--listen", f"tcp://127.0.0.1:{self.port}"]
        return client_command(self.party(name), self.lines[name].endpoint)

    def start(self, *names: str) -> None:
        for name in names:
            with (self.folder / f"{name}.screen").open("a") as screen:
                self.running[name] = self.process(self.command(name), screen)

    def process(self, command: list[str | Path], screen: TextIO) -> Running:
        """A party's, started."""
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=screen, stderr=screen, text=True)

    def start_again(self, name: str) -> int:
        """Start a party that runs a second time; the exit code of the second one."""
        return subprocess.run(self.command(name), env=ENVIRONMENT, capture_output=True, timeout=PATIENCE).returncode

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> int:
        """Kill a party that runs; its exit code."""
        process = self.running[name]
        assert process.poll() is None, self.screen(name)
        process.send_signal(how)
        return process.wait(timeout=PATIENCE)

    def one_misfortune(self) -> None:
        """Someone is killed, stands still or is cut off, and comes back: who, which and for how long is chance."""
        name = self.chance.choice([*self.NAMES, "server"])
        what = self.chance.choice(["killed", "still", "cut off"])
        if self.running[name].poll() is not None:
            return  # it has finished
        seconds = self.chance.choice([0.0, 1.0, 6.0])
        if what == "cut off" and name != "server":
            self.lines[name].cut()
            time.sleep(seconds)
            self.lines[name].mend()
        elif what == "still":
            self.running[name].send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            self.running[name].send_signal(signal.SIGCONT)
        else:
            self.running[name].kill()
            self.running[name].wait(timeout=PATIENCE)
            time.sleep(seconds)
            self.start(name)

    def screen(self, name: str) -> str:
        return (self.folder / f"{name}.screen").read_text()[-3000:]

    def finish(self) -> dict[str, int]:
        """Wait until all have ended; their exit codes."""
        codes = {name: process.wait(timeout=PATIENCE) for name, process in self.running.items()}
        assert not any(codes.values()), {name: self.screen(name) for name, code in codes.items() if code}
        return codes

    @contextlib.contextmanager
    def falling(self) -> Iterator[Night]:
        """Whatever happens, nothing is left."""
        try:
            yield self
        finally:
            for process in self.running.values():
                process.kill()
                process.wait()
            for line in self.lines.values():
                line.close()

    # -- looking ---------------------------------------------

    @property
    def events(self) -> list[dict[str, Any]]:
        """What the server wrote so far, whole lines alone."""
        path = self.party("server") / "events.jsonl"
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in whole.splitlines():
                with contextlib.suppress(ValueError):  # a kill cut it off
                    self._events.append(json.loads(line))
        return self._events

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def some_events_later(self, most: int) -> None:
        """At a random instant, up to so many events from now."""
        target = len(self.events) + self.chance.randint(1, most)
        until(lambda: len(self.events) >= target or self.running["server"].poll() is not None)
        time.sleep(self.chance.random() / 20)

    def status(self, name: str) -> dict[str, Any]:
        """What a running party's status file says now."""
        path = self.party(name) / "status.json"
        return dict(json.loads(path.read_bytes())) if path.exists() else {"waiting": []}

    def names_waited_for(self, name: str) -> list[str]:
        return [one["name"] for one in self.status(name)["waiting"]]

    def status_by_command(self, name: str) -> dict[str, Any]:
        done = subprocess.run(
            [*SECURE_CODREAM, "status", self.party(name), "--json"], env=ENVIRONMENT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def log(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.party(name) / "log.jsonl").read_text().splitlines()]

    def assert_no_hail_of_refusals(self) -> None:
        """At most three each time that a line comes back: in each of the server's lives, and after a break."""
        for name in self.NAMES:
            joined = sum(event["client"] == name for event in self.of("client_joined"))
            lives = max(joined, len(self.of("federation_started")))
            told = sum(line["event"] in ("refused", "refused-by-server") for line in self.log(name))
            assert told <= 3 * lives, (name, told, lives)
            assert sum(event["client"] == name for event in self.of("refused")) <= 3 * lives
        assert not [event for event in self.of("rate_limited") if event["kind"] == "Hello"]

    def assert_nothing_was_lost_or_counted_twice(self) -> None:
        """Batches, what clients learnt and measured, heads, and what `verify` says of all of it."""
        batches = sorted(path.name for path in (self.party("server") / "rounds").iterdir())
        assert batches == [f"round-{number:03d}.npz" for number in range(self.rounds)]
        numbers = [event["number"] for event in self.of("round_finished")]
        assert numbers == sorted(set(numbers)), "an epoch was certified twice"
        heads = set()
        for name in ("server", *self.NAMES):
            done = subprocess.run(
                [*SECURE_CODREAM, "verify", self.party(name), "--json"],
                env=ENVIRONMENT,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            found = json.loads(done.stdout)
            heads.add((found["head"], found["epochs"]))
            if name != "server":
                lines = (self.party(name) / "metrics.jsonl").read_text().splitlines()
                rounds = [
                    json.loads(line)["rounds"] for line in lines
                ]  # who goes on measures once more where it stands
                assert rounds[-1] == self.rounds and set(rounds) == set(range(self.rounds + 1)), (name, rounds)
        assert len(heads) == 1
