"""What the network does to a federation: `python benchmarks/network.py load | far | flood`.

The server is a process of its own, as `secure-codream server` starts it; honest clients are coroutines of this one,
without torch. The course is CoDream, whose state is one batch of dreams however many rounds there are; each client
answers with the same random numbers within the bounds every time, so that what is measured is the exchange. Clients
keep no journal: a site has a disk of its own, which would here be one for all of them. A step is timed from when a
client is asked for it to when it is asked for the next.

- `load [--clients 50] [--mode resilient]`: 100 steps of about 10^5 coordinates. Seconds, and CPU and the largest
  resident memory of either process.
- `far [--delay 0.05]`: five clients, each of whose lines takes so many seconds longer, each way. What a step takes
  longer, in round trips of twice the delay, is how many round trips it has.
- `flood`: six clients in lockstep, of which one is a process of its own that floods the server: with 2,000 silent
  connections, with oversized and slow frames of strangers, with oversized frames of a member's key, with strangers'
  handshakes, and with a member's Hello, beside its own line and on it. Steps without a flood and under it alternate;
  the ratio of their medians is printed for each kind. Server and honest clients share one core and the flood has
  another, so that it takes from them what the server spends on it, and not the core itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import msgspec
import numpy as np
import structlog
import zmq
from zmq.utils import z85

from codream_clients.runner import ClientRunner
from codream_protocols.charter import Policy
from codream_protocols.client import ClientProtocol, InMemory
from codream_protocols.course import Array, Publication, Task
from codream_protocols.messages import encode_message
from codream_protocols.specs import VectorSpec
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import FederationConfig, read_federation
from secure_codream.deployment.provision import provision
from secure_codream.membership.accepted import load_roster, own_keys
from secure_codream.membership.keys import public_transport_key
from secure_codream.membership.passphrase import Passphrase


class Forgetful(InMemory):
    """A journal that keeps nothing."""

    def certified(self, kept: object) -> None:
        pass


class Numbers:
    """A learner whose answers are made once; it notes when it is asked for a dream step.

    Attributes:
        asked: of each update step, when, in seconds, and which of its epoch's.
    """

    def __init__(self, seed: int) -> None:
        self.asked: list[tuple[float, int]] = []
        self._random = np.random.default_rng(seed)
        self._made: dict[str, Mapping[str, Array]] = {}
        self._step = 0

    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
        if task.name == "update":
            self.asked.append((time.monotonic(), self._step))
            self._step += 1
        else:
            self._step = 0
        if spec.task not in self._made:
            self._made[spec.task] = {
                block.name: self._random.uniform(0, min(block.clip, 9), block.length) for block in spec.blocks
            }
        return self._made[spec.task]

    def learn(self, number: int, publication: Publication) -> None:
        pass

    def steps(self, since: float = 0.0) -> list[float]:
        """Seconds of each step that began since then, from when it was asked for to when the next one was."""
        pairs = zip(self.asked, self.asked[1:], strict=False)
        return [end - begin for (begin, at), (end, next_) in pairs if next_ == at + 1 and begin >= since]


class Stand:
    """A provisioned federation.

    Args:
        folder: made.
        members: clients.
        rounds: of dreams.
        steps: of a round.
        batch: dreams of 3 x 32 x 32 pixels.
        mode: how sums are made; the number of clients decides, unless given.
    """

    def __init__(
        self, folder: Path, *, members: int, rounds: int, steps: int, batch: int, mode: str | None = None
    ) -> None:
        tables = {
            "federation": {"rounds": rounds, "name": "stand"},
            "task": {"shape": (3, 32, 32), "classes": 10},
            "dreams": {"batch": batch, "steps": steps},
            "timing": {"lost_after": 600.0, "step": 600.0},
            **({} if mode is None else {"aggregation": {"mode": mode}}),
        }
        self.names = [f"site-{number}" for number in range(members)]
        clients = [ClientConfig.model_validate({"name": name, "model": "mlp"}) for name in self.names]
        config = FederationConfig.model_validate(tables)
        provision(folder, config=config, clients=clients, address="tcp://127.0.0.1:7447")
        self.folder = folder

    @contextmanager
    def serving(self) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
        """The server's process, and where it listens."""
        folder = self.folder / "server"
        command = [sys.executable, "-m", "secure_codream", "server", folder, "--listen", "tcp://127.0.0.1:*"]
        with (self.folder / "server.screen").open("wb") as screen:
            process = subprocess.Popen(command, stdout=screen, stderr=screen)
        try:
            while not (folder / "endpoint").exists():
                if process.poll() is not None:
                    raise RuntimeError((self.folder / "server.screen").read_text())
                time.sleep(0.05)
            yield process, (folder / "endpoint").read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            finally:
                process.kill()

    def client(self, number: int, learner: Numbers, address: str) -> ClientRunner:
        return client_of(self.folder / "clients" / self.names[number], learner, address)


def client_of(folder: Path, learner: Numbers, address: str) -> ClientRunner:
    """A client of a provisioned folder."""
    roster = load_roster(folder)
    config = read_federation(folder / "config.toml")
    course, charter = make_course(config), config.charter(roster)
    secret, signer = own_keys(folder, roster, folder.name, Passphrase())
    assert signer is not None
    return ClientRunner(
        protocol=ClientProtocol(
            charter=charter,
            roster=roster,
            course=course,
            member=roster.number_of(folder.name),
            signer=signer,
            policy=Policy(losses=True, cuts=True),
            journal=Forgetful(),
        ),
        learner=learner,
        roster=roster,
        transport_secret=secret,
        transport_public=public_transport_key(secret),
        epochs=course.epochs,
        address=address,
        most_steps=max(len(course.schedule(at)) for at in range(course.epochs)),
        log=structlog.wrap_logger(None, processors=[_errors_alone]),
    )


def _errors_alone(logger: object, method: str, event: object) -> str:
    if method == "error":
        print(event, file=sys.stderr)
    raise structlog.DropEvent


def cpu_seconds(pid: int) -> float:
    """What a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_megabytes(pid: int) -> float:
    """Of a process, since it began."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no VmHWM in /proc/{pid}/status")


def milliseconds(seconds: list[float]) -> float:
    """The median."""
    return 1000 * statistics.median(seconds)


class Line:
    """A TCP line to a port of this machine on which each byte is `delay` seconds under way, however many there are."""

    def __init__(self, target: str, delay: float) -> None:
        self._host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._port, self._delay = int(port), delay

    async def open(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        self._server.close()

    async def _accept(self, near: asyncio.StreamReader, near_end: asyncio.StreamWriter) -> None:
        far, far_end = await asyncio.open_connection(self._host, self._port)
        with suppress(asyncio.CancelledError):  # all is over; its task is nobody's who could be told
            await asyncio.gather(self._carry(near, far_end), self._carry(far, near_end))

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await source.read(1 << 16):
            loop.call_later(self._delay, sink.write, data)
        loop.call_later(self._delay, sink.close)


# -- many clients ---------------------------------------------


def load(chosen: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stand = Stand(
            Path(folder) / "stand",
            members=chosen.clients,
            rounds=chosen.rounds,
            steps=chosen.steps,
            batch=chosen.batch,
            mode=chosen.mode,
        )
        learners = [Numbers(number) for number in range(chosen.clients)]
        with stand.serving() as (process, address):
            began, own, before = time.monotonic(), time.process_time(), cpu_seconds(process.pid)

            async def everybody() -> tuple[float, float, float]:
                runners = [stand.client(number, learner, address) for number, learner in enumerate(learners)]
                await asyncio.gather(*(runner.run() for runner in runners))
                return time.monotonic() - began, cpu_seconds(process.pid) - before, peak_megabytes(process.pid)

            seconds, cpu, peak = asyncio.run(everybody())
            code = process.wait(120)
        assert code == 0 and "torch" not in sys.modules
        assert all(len(learner.asked) >= chosen.rounds * chosen.steps for learner in learners)
    steps = chosen.rounds * chosen.steps
    print(
        f"{chosen.clients} clients, {chosen.rounds} rounds of {chosen.steps} steps of {3072 * chosen.batch} coordinates"
    )
    print(f"{seconds:.0f} s; a step {milliseconds(learners[0].steps()):.0f} ms (median)")
    print(f"server: CPU {cpu:.1f} s, {1000 * cpu / steps:.0f} ms a step; at most {peak:.0f} MB")
    print(
        f"all clients: CPU {time.process_time() - own:.1f} s, "
        f"{1000 * (time.process_time() - own) / steps / chosen.clients:.1f} ms a client and step; "
        f"at most {peak_megabytes(os.getpid()):.0f} MB"
    )


# -- far away ---------------------------------------------

MEMBERS = 5


async def over_lines(stand: Stand, address: str, delay: float) -> list[float]:
    learners, lines = [Numbers(number) for number in range(MEMBERS)], [Line(address, delay) for _ in range(MEMBERS)]
    places = [await line.open() for line in lines]
    runners = [stand.client(number, learner, places[number]) for number, learner in enumerate(learners)]
    await asyncio.gather(*(runner.run() for runner in runners))
    for line in lines:
        line.close()
    return learners[0].steps()


def far(chosen: argparse.Namespace) -> None:
    print(f"{'mode':<11}{'near, ms':>10}{'far, ms':>10}{'round trips':>13}")
    for mode in ("lockstep", "resilient"):
        found = []
        for delay in (0.0, chosen.delay):
            with tempfile.TemporaryDirectory() as folder:
                stand = Stand(Path(folder) / "stand", members=MEMBERS, rounds=2, steps=chosen.steps, batch=2, mode=mode)
                with stand.serving() as (_, address):
                    found.append(milliseconds(asyncio.run(over_lines(stand, address, delay))))
        near, far = found
        print(f"{mode:<11}{near:>10.1f}{far:>10.1f}{(far - near) / (2000 * chosen.delay):>13.2f}")


# -- floods ---------------------------------------------

SILENT = 2_000
KINDS = ("silent", "frames", "oversized", "handshakes", "hello", "own")
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(15) + bytes(32)  # ZMTP 3.1's, of a client
ENDLESS = b"\x06" + (1 << 40).to_bytes(8, "big")  # a command of 2^40 bytes
LONG = b"\x04\xc8\x05HELLO"  # the beginning of CURVE's first command, whose rest comes byte by byte


class Flood:
    """What the flooding process does beside its part as a member; one kind at a time."""

    def __init__(self, runner: ClientRunner, keys: tuple[bytes, bytes], server_key: bytes, address: str) -> None:
        self.kind, self.counts = "", Counter[str]()
        self._runner, self._keys, self._server_key, self._address = runner, keys, server_key, address
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        self._place = host, int(port)

    async def take_part(self) -> None:
        """As the member that it is, and do beside it what standard input says."""
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self.listen, daemon=True).start()
        await self._runner.run()

    def listen(self) -> None:
        """Do what standard input says, a kind a line, until it ends; counts so far go to standard output.

        "?" asks for them alone.
        """
        for line in sys.stdin:
            print(json.dumps(self.counts), flush=True)
            if line.strip() == "?":
                continue
            self.kind = line.strip()
            if self.kind:
                threading.Thread(target=getattr(self, f"_{self.kind}"), daemon=True).start()

    def _silent(self) -> None:
        """As many connections as there may be; who is cut off comes back."""
        here: list[socket.socket] = []
        while self.kind == "silent":
            here = [one for one in here if _is_open(one)]
            while len(here) < SILENT and self.kind == "silent":
                with suppress(OSError):
                    here.append(socket.create_connection(self._place, timeout=5))
                    self.counts["silent connections"] += 1
            time.sleep(0.2)
        for one in here:
            one.close()

    def _frames(self) -> None:
        """Strangers: 200 lines on which a frame comes byte by byte, and beside them endless frames, one by one."""
        slow: list[socket.socket] = []
        while self.kind == "frames":
            slow = [one for one in slow if _said(one, b"x")]
            while len(slow) < 200:
                with suppress(OSError):
                    slow.append(socket.create_connection(self._place, timeout=5))
                    _said(slow[-1], GREETING + LONG)
                    self.counts["slow frames"] += 1
            for _ in range(100):
                with suppress(OSError), socket.create_connection(self._place, timeout=5) as one:
                    one.sendall(GREETING + ENDLESS + bytes(1 << 12))
                    self.counts["oversized frames of strangers"] += 1
        for one in slow:
            one.close()

    def _oversized(self) -> None:
        """With a member's key, on another connection than its own: frames beyond what the socket takes."""
        with zmq.Context() as context, self._line(context, self._keys) as line:
            frame = bytes(1 << 20)
            while self.kind == "oversized":
                if line.poll(100, zmq.POLLOUT):
                    line.send(frame, copy=False)
                    self.counts["oversized frames of a member"] += 1

    def _handshakes(self) -> None:
        """Strangers' keys, which are refused."""
        with zmq.Context() as context:
            while self.kind == "handshakes":
                lines = [self._line(context, zmq.curve_keypair()) for _ in range(20)]
                time.sleep(0.02)
                for line in lines:
                    line.close(linger=0)
                self.counts["handshakes of strangers"] += len(lines)

    def _line(self, context: zmq.Context[zmq.Socket[bytes]], keys: tuple[bytes, bytes]) -> zmq.Socket[bytes]:
        line = context.socket(zmq.DEALER)
        line.curve_publickey, line.curve_secretkey = keys
        line.curve_serverkey = self._server_key
        line.setsockopt(zmq.LINGER, 0)
        line.setsockopt(zmq.RECONNECT_IVL, 1)
        line.setsockopt(zmq.SNDHWM, 2)
        line.connect(self._address)
        return line

    def _hello(self) -> None:
        """With the member's key, of another charter, on another connection: it still answers on its own."""
        hello = msgspec.structs.replace(self._runner._protocol.hello(), charter=bytes(32))
        with zmq.Context() as context, self._line(context, self._keys) as line:
            while self.kind == "hello":
                if line.poll(100, zmq.POLLOUT):
                    line.send(encode_message(hello))
                    self.counts["Hello of a member"] += 1

    def _own(self) -> None:
        """On the member's own line, as many as it takes, of its own charter: what it answers comes behind them."""

        async def fill() -> None:
            while self.kind == "own":
                hello = encode_message(self._runner._protocol.hello())
                await self._runner._line.socket.send(hello)  # in turn with its answers, none of which is lost
                self.counts["Hello of a member, on its own line"] += 1
                await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(fill(), self._loop).result()


def _is_open(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return one.recv(1 << 12) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _said(one: socket.socket, data: bytes) -> bool:
    try:
        one.sendall(data)
    except OSError:
        return False
    return True


def flooding(folder: Path, address: str) -> None:
    """The flooding process: a member like the others, and more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    roster = load_roster(folder)
    secret, _ = own_keys(folder, roster, folder.name, Passphrase())
    keys = z85.encode(public_transport_key(secret)), z85.encode(secret)
    runner = client_of(folder, Numbers(99), address)
    asyncio.run(Flood(runner, keys, z85.encode(roster.server.transport_key), address).take_part())


def flood(chosen: argparse.Namespace) -> None:
    honest, learners = {0}, [Numbers(number) for number in range(MEMBERS)]
    with tempfile.TemporaryDirectory() as folder:
        stand = Stand(Path(folder) / "stand", members=MEMBERS + 1, rounds=100_000, steps=20, batch=chosen.batch)
        os.sched_setaffinity(0, honest)
        with stand.serving() as (server, address):
            flooder = subprocess.Popen(
                [sys.executable, __file__, "flooding", stand.folder / "clients" / stand.names[-1], address],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            os.sched_setaffinity(flooder.pid, {1})

            def tell(kind: str) -> dict[str, int]:
                assert flooder.stdin is not None and flooder.stdout is not None
                print(kind, file=flooder.stdin, flush=True)
                return dict(json.loads(flooder.stdout.readline()))

            async def phases() -> None:
                runners = [stand.client(number, learner, address) for number, learner in enumerate(learners)]
                running = [asyncio.ensure_future(runner.run()) for runner in runners]
                await _steps_later(learners[0], 20, running)
                print(f"{'flood':<12}{'steps, ms: without':>20}{'under it':>10}{'ratio':>7}{'server, MB':>12}  count")
                for kind in chosen.kinds:
                    await _phase(kind)
                for task in running:
                    task.cancel()

            async def _phase(kind: str) -> None:
                without: list[float] = []
                under: list[float] = []
                count, before = 0, Counter(tell(""))
                while len(under) < chosen.steps * chosen.turns or count < chosen.least:
                    for told, found in (("", without), (kind, under)):
                        begun = Counter(tell(told))
                        await asyncio.sleep(chosen.pause)
                        while told == "silent" and (Counter(tell("?")) - begun).total() < SILENT:
                            await asyncio.sleep(0.1)
                        since = time.monotonic()
                        await _steps_later(learners[0], chosen.steps, ())
                        found += learners[0].steps(since)
                    after = Counter(tell(""))
                    count = sum((after - before).values())
                    if kind not in ("frames", "hello", "own") and len(under) >= chosen.steps * chosen.turns:
                        break
                assert server.poll() is None, "the server did not live"
                quiet, loud = milliseconds(without), milliseconds(under)
                counts = ", ".join(f"{number:,} {name}" for name, number in (after - before).items())
                peak = peak_megabytes(server.pid)
                print(f"{kind:<12}{quiet:>20.0f}{loud:>10.0f}{loud / quiet:>7.2f}{peak:>12.0f}  {counts}", flush=True)

            try:
                asyncio.run(phases())
            finally:
                flooder.kill()
                flooder.wait()


async def _steps_later(learner: Numbers, steps: int, running: Sequence[asyncio.Future[None]]) -> None:
    target = len(learner.asked) + steps
    while len(learner.asked) < target:
        for task in running:
            if task.done():
                task.result()
        await asyncio.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the network does to a federation.")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("load")
    one.add_argument("--clients", type=int, default=50)
    one.add_argument("--rounds", type=int, default=10)
    one.add_argument("--steps", type=int, default=10)
    one.add_argument("--batch", type=int, default=32)
    one.add_argument("--mode", choices=["lockstep", "resilient"])
    one.set_defaults(run=load)
    one = commands.add_parser("far")
    one.add_argument("--delay", type=float, default=0.05)
    one.add_argument("--steps", type=int, default=30)
    one.set_defaults(run=far)
    one = commands.add_parser("flood")
    one.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    one.add_argument("--steps", type=int, default=20, help="of a turn")
    one.add_argument("--turns", type=int, default=4)
    one.add_argument("--least", type=int, default=100_000, help="frames and Hellos")
    one.add_argument("--pause", type=float, default=2.0, help="seconds before a turn is timed")
    one.add_argument("--batch", type=int, default=32)
    one.set_defaults(run=flood)
    one = commands.add_parser("flooding")
    one.add_argument("folder", type=Path)
    one.add_argument("address")
    one.set_defaults(run=lambda chosen: flooding(chosen.folder, chosen.address))
    chosen = parser.parse_args()
    chosen.run(chosen)


if __name__ == "__main__":
    main()
