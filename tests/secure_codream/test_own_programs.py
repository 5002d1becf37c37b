"""Client and server in a person's own program: in a notebook, in a thread, in a loop, and interrupted."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from codream_clients.runner import LEARNER
from secure_codream import Client, Server, run_local
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import FederationConfig
from secure_codream.deployment.provision import provision
from secure_codream.deployment.rounds import on_round_of
from secure_codream.deployment.signals import Stop, Stopped, run_until_stopped
from secure_codream.deployment.verify_statement import verify_statement
from tests.secure_codream.small import has_ipv6
from tests.secure_codream.test_data_command import arrays, model
from tests.secure_codream.test_party import NOWHERE, log_of, provisioned

HEARD = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return provisioned(tmp_path / "out")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No thread, no socket and no signal's handler outlives a test."""
    before, handlers = open_sockets(), [signal.getsignal(number) for number in HEARD]
    yield
    assert [signal.getsignal(number) for number in HEARD] == handlers
    for thread in threading.enumerate():
        if thread.name.startswith(LEARNER):
            thread.join(60)  # of an interrupted client: it ends with what it computes
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith(("party", "protocol", LEARNER))]
    assert left == []
    assert open_sockets() == before


def open_sockets() -> int | None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        return None  # no Linux: threads and handlers are looked at alone
    links = [str(path.readlink()) for path in descriptors.iterdir() if path.is_symlink()]
    return sum("socket:" in link or "eventfd" in link for link in links)


def in_a_loop_as_a_notebooks(work: Callable[[], object]) -> None:
    """Call from within a running loop that leaves signals to Python, as the kernel of a notebook does."""

    async def cell() -> None:
        work()

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(cell())
    finally:
        loop.close()


async def listening(server: Path) -> str:
    while not (server / "endpoint").exists():
        await asyncio.sleep(0.02)
    return (server / "endpoint").read_text()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_whole_federation_runs_beside_what_a_users_loop_does(out: Path, host: str) -> None:
    if host == "[::1]" and not has_ipv6():
        pytest.skip("this machine has no IPv6 on loopback")
    figures: dict[str, list[Any]] = {name: [] for name in ("alice", "bob", "carol", "server")}
    threads: set[threading.Thread] = set()

    def told(name: str) -> Callable[[Any], None]:
        def keep(found: Any) -> None:
            figures[name].append(found)
            threads.add(threading.current_thread())

        return keep

    async def program() -> None:
        server = asyncio.ensure_future(Server(out / "server").arun(listen=f"tcp://{host}:*", on_round=told("server")))
        address = await listening(out / "server")
        clients = [
            Client(out / "clients" / name).arun(address=address, on_round=told(name))
            for name in ("alice", "bob", "carol")
        ]
        await asyncio.gather(server, *clients)

    asyncio.run(program())
    assert threads == {threading.main_thread()}  # the loop's
    for name in ("alice", "bob", "carol"):
        assert [one.rounds for one in figures[name]] == [0, 1, 2, 3][: len(figures[name])]
        assert len(figures[name]) >= 3 and 0 <= figures[name][-1].accuracy <= 1
    assert [event["number"] for event in figures["server"]] == [1, 2, 3]
    assert figures["server"][-1]["metrics"].keys() >= {"accuracy"}


@pytest.mark.parametrize("where", ["notebook", "thread"])
def test_run_works_in_a_notebook_and_in_a_thread(out: Path, where: str) -> None:
    """Nobody answers, and that is what it says: it went all the way to its socket."""
    ended: list[str] = []

    def work() -> None:
        try:
            Client(out / "clients" / "alice").run(address="there")
        except Exception as error:
            ended.append(str(error))

    if where == "notebook":
        in_a_loop_as_a_notebooks(work)
    else:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert ended == ["found 'there' (Invalid argument); allowed: tcp://HOST:PORT, the server's"]


@pytest.mark.parametrize("party", ["client", "server"])
@pytest.mark.parametrize("where", ["script", "notebook"])
def test_interrupt_leaves_no_thread_and_no_socket_behind(
    out: Path, where: str, party: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(found: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def work() -> None:
        if party == "client":
            Client(out / "clients" / "alice").run(address=NOWHERE, on_round=interrupt)
        else:
            Server(out / "server").run(listen="tcp://127.0.0.1:*")

    monkeypatch.setattr("secure_codream.deployment.server._announce", lambda folder, endpoint: interrupt(endpoint))
    with pytest.raises(KeyboardInterrupt):
        work() if where == "script" else in_a_loop_as_a_notebooks(work)
    if party == "client":
        stated = verify_statement(out / "clients" / "alice")  # what was spent is stated all the same, and signed
        assert stated.compared and stated.statement.party == "alice"


def test_client_that_is_cancelled_in_a_users_loop_lets_go_of_everything(out: Path) -> None:
    async def program() -> None:
        warmed_up = asyncio.Event()
        client = Client(out / "clients" / "alice")
        task = asyncio.ensure_future(client.arun(address=NOWHERE, on_round=lambda found: warmed_up.set()))
        await warmed_up.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(program())
    assert "warm-up" in {line["event"] for line in log_of(out / "clients" / "alice")}


def test_a_stop_asked_before_the_work_has_begun_is_not_lost() -> None:
    stop = Stop()
    stop.ask()
    with pytest.raises(Stopped, match="stopped; start it again to go on"):
        run_until_stopped(asyncio.sleep(3600), stop)
    stop.ask()  # when it is over: nothing happens


def test_what_on_round_raises_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(found: int) -> None:
        raise ZeroDivisionError(f"in round {found}")

    with caplog.at_level(logging.ERROR, "secure_codream"):
        on_round_of(broken)(3)
    assert "on_round failed" in caplog.text and "ZeroDivisionError: in round 3" in caplog.text


@pytest.mark.parametrize("course", ["codream", "fedavg"])
def test_local_run_tells_of_each_round(course: str) -> None:
    told: list[Any] = []
    run = run_local(
        [model() for _ in range(3)],
        [arrays(12, seed, 8, 8) for seed in range(3)],
        arrays(12, 3, 8, 8),
        classes=2,
        seed=1,
        federation={"rounds": 2, "course": course},
        dreams={"batch": 4, "steps": 1},
        learning={"warm_up_epochs": 1, "distil_epochs": 1, "local_epochs": 1, "local_steps": 1},
        on_round=told.append,
    )
    assert [[one.accuracy for one in metrics] for metrics in told] == run.accuracies[1:].tolist()
    assert [{one.rounds for one in metrics} for metrics in told] == [{1}, {2}]


def test_windows_is_refused_in_one_line() -> None:
    code = "import sys; sys.platform = 'win32'; import secure_codream"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: secure-codream runs on Linux and macOS; on Windows, run it in WSL 2"
    )


def test_rectangular_images_are_taken_as_run_local_takes_them(tmp_path: Path) -> None:
    config = FederationConfig.model_validate({"task": {"shape": (1, 8, 12), "classes": 3}})
    clients = [ClientConfig.model_validate({"name": name, "model": "mlp"}) for name in "abc"]
    provision(tmp_path / "out", config=config, clients=clients, address=NOWHERE)
    images = np.random.default_rng(0).random((30, 1, 8, 12), dtype=np.float32)
    client = Client(tmp_path / "out" / "clients" / "a", train=(images, np.arange(30) % 3))
    assert client._data is not None and client._data[0].images.shape == (30, 1, 8, 12)
