"""The client's runner: who it hears and answers, what it computes and learns, in which order, and how it ends."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import tracemalloc
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
import zmq

from codream_clients import runner as module
from codream_clients.failures import Failures
from codream_clients.function_learner import FunctionLearner
from codream_clients.journal import FileJournal, JournalError
from codream_clients.refusals import ALLOWED, refusal
from codream_protocols import errors
from codream_protocols.accelerator import Masked
from codream_protocols.charter import Offer, Policy
from codream_protocols.client import Ended
from codream_protocols.course import Array, Publication, Task
from codream_protocols.courses.sums import Sums
from codream_protocols.errors import AddressRefused, AggregationFailed, CharterRefused, UnsupportedVersion
from codream_protocols.keyschedule import PROTOCOL
from codream_protocols.messages import Beat, Farewell, GivenUp, Hello, Invitation, MaskedInput, Refusal, Welcome
from codream_protocols.record import certified_epochs
from codream_protocols.specs import Block, VectorSpec
from tests.clients.network import FakeLearner, Federation, Log, over_network, take_part


def test_a_federation_runs_to_its_end_and_all_is_learnt_in_order() -> None:
    whole, learners = Federation(), [FakeLearner(number) for number in range(3)]

    async def scenario(whole: Federation) -> None:
        await take_part(whole, [whole.runner(number, learner) for number, learner in enumerate(learners)])

    over_network(whole, scenario)
    round = ["metrics", "update", "update", "logits"]
    for learner in learners:
        assert learner.calls == [*round, "learn 1", *round, "learn 2", "metrics", "learn 3"]


def test_sums_of_plain_functions_over_the_network() -> None:
    found: list[Publication] = []
    whole = Federation(course=Sums({"patients": (Block("number", 1, 1000, "count"), Block("ages", 2, 100.0))}))

    def learner(number: int) -> FunctionLearner:
        return FunctionLearner(
            {"patients": lambda arrays: {"number": 10 * number, "ages": [1.0, number]}},
            learn=lambda number, publication: found.append(publication),
        )

    async def scenario(whole: Federation) -> None:
        await take_part(whole, [whole.runner(number, learner(number)) for number in range(3)])

    over_network(whole, scenario)
    assert len(found) == 3 and found[0]["patients.number"].tolist() == [30]
    assert found[0]["patients.ages"] == pytest.approx([3, 3], abs=0.01)


def test_hello_comes_before_any_training_and_a_computation_waits_for_it() -> None:
    """A client that trained first was given up on before it had said a word."""
    whole, training, order = Federation(), threading.Event(), []

    class Slow(FakeLearner):
        def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
            order.append(task.name)
            return super().compute(task, spec)

    def prepare() -> None:
        training.wait(20)
        order.append("prepared")

    async def scenario(whole: Federation) -> int:
        runners = [whole.runner(0, Slow(0), prepare=prepare), whole.runner(1), whole.runner(2)]
        running = asyncio.ensure_future(take_part(whole, runners))
        await asyncio.sleep(1.0)
        beats = sum(member == 0 and isinstance(message, Beat) for member, message in whole.heard)
        inputs = {member for member, message in whole.heard if isinstance(message, MaskedInput)}
        assert inputs == {1, 2}  # the set-up is done, with everybody
        training.set()
        await running
        return beats

    assert over_network(whole, scenario) >= 5
    assert order[0] == "prepared" and len(order) == 10


def test_a_training_that_fails_beforehand_ends_the_client() -> None:
    async def scenario(whole: Federation) -> None:
        def prepare() -> None:
            raise OSError("no images")

        await whole.runner(0, prepare=prepare).run()

    with pytest.raises(OSError, match="no images"):
        over_network(Federation(), scenario)


def test_what_a_learner_raises_is_for_its_own_screen_and_zeros_are_sent() -> None:
    """Also numbers of the wrong form, and a failure in learning: the others go on, and are told nothing."""
    log, whole = Log(), Federation()

    class Failing(FakeLearner):
        def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
            values = super().compute(task, spec)
            if task.name == "update":
                raise RuntimeError("gradient of patient 4711\x1b[2J")
            return {} if task.name == "logits" else values

        def learn(self, number: int, publication: Publication) -> None:
            super().learn(number, publication)
            raise ValueError(f"budget {number} is spent")

    learner = Failing()

    runners: list[Any] = []

    async def scenario(whole: Federation) -> None:
        runners.extend([whole.runner(0, learner, log=log), whole.runner(1), whole.runner(2)])
        await take_part(whole, runners)

    over_network(whole, scenario)
    assert str(runners[0].failures) == (
        "zeros were summed for 'logits' in 2 steps; zeros were summed for 'update' in 4 steps; "
        "epochs 1 to 3 were not learnt, or not in full"
    )
    assert not runners[1].failures
    failed = [words["found"] for words in log.of("computation-failed")]
    assert len(failed) == 6 and failed[0] == r"RuntimeError: gradient of patient 4711\x1b[2J"
    assert [words["found"] for words in log.of("learning-failed")] == [
        f"ValueError: budget {number} is spent" for number in (1, 2, 3)
    ]
    assert all(level == "error" for level, event, _ in log.lines if event.endswith("-failed"))
    said = [message for _, message in whole.heard if not isinstance(message, Hello | Beat)]
    assert not any("4711" in repr(message) or "spent" in repr(message) for message in said)


def test_a_device_that_fails_with_its_masks_taken_costs_an_epoch_and_its_client_stays() -> None:
    class Device:
        def ready(self, *arguments: Any) -> Device:
            return self

        def masked(self, *arguments: Any) -> Masked:
            raise MemoryError

    async def scenario(whole: Federation) -> list[module.ClientRunner]:
        protocols = [whole.protocol(0, accelerator=Device()), whole.protocol(1), whole.protocol(2)]
        runners = [whole.runner(member, protocol=one, log=Log()) for member, one in enumerate(protocols)]
        await take_part(whole, runners)
        return runners

    first, second, _ = over_network(whole := Federation(), scenario)
    (ended,), (of_others,) = (runner._log.of("epoch-given-up") for runner in (first, second))
    assert "its masks used up" in ended["found"] and "masks on the processor" in ended["found"]
    assert of_others["found"] == "client-1 refused (device-failed)"
    assert whole.server.certified == first._protocol.certified == whole.course.epochs
    assert not first.failures


def test_failures_that_cannot_be_kept_end_the_client() -> None:
    """They would be forgotten at the next start, and a federation that missed them would look as if all were well."""

    class Failing(FakeLearner):
        def learn(self, number: int, publication: Publication) -> None:
            raise ValueError("no room in the budget")

    def keep(content: bytes) -> None:
        raise OSError("the disk is full")

    async def scenario(whole: Federation) -> None:
        runners = [whole.runner(0, Failing(), failures=Failures(keep=keep)), whole.runner(1), whole.runner(2)]
        await take_part(whole, runners)

    with pytest.raises(OSError, match="the disk is full"):
        over_network(Federation(), scenario)


# -- one client against a script ---------------------------------------------


def scripted(script: Any, **options: Any) -> tuple[Any, Log]:
    """Run the first client of a federation against `script(whole, running)`; returns what it returns, and the log."""
    log, whole = Log(), options.pop("whole", None) or Federation()

    async def scenario(whole: Federation) -> Any:
        running = asyncio.ensure_future(whole.runner(0, log=log, **options).run())
        try:
            return await script(whole, running)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    return over_network(whole, scenario), log


async def hello(whole: Federation) -> Hello:
    while True:
        message = await whole.receive_from(0)
        if isinstance(message, Hello):
            return message


async def collect(whole: Federation, seconds: float) -> list[Any]:
    found, end = [], time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            found.append(await asyncio.wait_for(whole.receive_from(0), left))
        except TimeoutError:
            break
    return found


async def refusals_of(whole: Federation, count: int) -> list[Refusal]:
    """The first so many refusals, however slow the machine is, and what follows them at once."""
    found: list[Refusal] = []
    end = time.monotonic() + 60
    while len(found) < count and time.monotonic() < end:
        found += [message for message in await collect(whole, 0.5) if isinstance(message, Refusal)]
    return found + [message for message in await collect(whole, 0.5) if isinstance(message, Refusal)]


@pytest.mark.parametrize("kind", [UnsupportedVersion, CharterRefused])
def test_a_server_of_another_version_or_charter_ends_the_client(kind: type[Exception]) -> None:
    async def script(whole: Federation, running: Any) -> None:
        await hello(whole)
        await whole.send(0, Refusal(kind.code, "another\x1b[31m", "this"))  # type: ignore[attr-defined]
        await asyncio.wait_for(running, 10)

    with pytest.raises(kind, match=r"another\\x1b\[31m"):
        scripted(script)


def test_an_answer_of_another_version_ends_the_client() -> None:
    async def script(whole: Federation, running: Any) -> None:
        await hello(whole)
        await whole.send(0, Welcome("secure-codream/9", 1.0, bytes(32)))
        await asyncio.wait_for(running, 10)

    with pytest.raises(UnsupportedVersion):
        scripted(script)


def test_a_federation_given_up_is_said_without_the_escapes_of_its_reason() -> None:
    async def script(whole: Federation, running: Any) -> None:
        await hello(whole)
        await whole.send(0, Farewell("no \x1b]0;clients\x07\u202e", False))
        await asyncio.wait_for(running, 10)

    with pytest.raises(AggregationFailed, match=r"no \\x1b\]0;clients\\x07\\u202e"):
        scripted(script)


def test_a_farewell_before_all_is_certified_here_is_no_end() -> None:
    """A malicious server said that all was over, and clients that had learnt nothing ended as if it were."""

    async def script(whole: Federation, running: Any) -> None:
        await hello(whole)
        await whole.send(0, Farewell("all epochs are certified\x1b[2J", True))
        await asyncio.wait_for(running, 10)

    with pytest.raises(AggregationFailed, match=r"after 0 of 3 certified epochs \(all epochs are certified\\x1b"):
        scripted(script)


def test_silence_ends_the_client_after_its_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(whole: Federation, running: Any) -> None:
        await asyncio.wait_for(running, 10)

    with pytest.raises(AggregationFailed, match="no word"):
        scripted(script, patience=1.0)


def test_after_silence_it_asks_and_then_connects_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program that answered first ended ZeroMQ's attempts for good."""
    monkeypatch.setattr(module, "ASK_SECONDS", 1.2)
    ports: list[bytes] = []

    async def script(whole: Federation, running: Any) -> None:
        while len(ports) < 3:
            route, data, *_ = await whole._sockets[0].recv_multipart()
            if data != b"" and isinstance(module_decode(data), Hello):
                ports.append(route)

    _, log = scripted(script)
    assert ports[0] == ports[1] != ports[2]
    assert len(log.of("silence")) == 1


class ScriptedLine:
    """A line on which a word comes at given seconds, on a clock of its own."""

    address = "tcp://127.0.0.1:9"

    def __init__(self, words: list[float]) -> None:
        self.now, self.socket, self._words = 0.0, self, words

    def monotonic(self) -> float:
        return self.now

    async def poll(self, wait: int) -> bool:
        if not self._words:
            raise EOFError
        self.now += wait / 1000
        if self.now < self._words[0]:
            return False
        self._words.pop(0)
        return True

    async def events(self) -> list[int]:
        return []

    def close(self, linger: int) -> None:
        pass

    def open(self, context: Any) -> None:
        pass


def lines_of_silences(monkeypatch: pytest.MonkeyPatch, silences: list[tuple[float, float]]) -> list[list[float]]:
    """For each silence (its start and end, seconds): when a line said so."""
    line = ScriptedLine([moment for silence in silences for moment in silence])
    runner = Federation().runner(0, address=line.address, patience=None)
    said: list[float] = []

    class Said(Log):
        def warning(self, event: str, **words: Any) -> None:
            assert event == "silence" and words["seconds"] > 0
            said.append(line.now)

    async def nothing(*_: Any) -> list[bytes]:
        return []

    monkeypatch.setattr(module, "time", line)
    for name in ("_take", "_next_message", "_hello"):
        monkeypatch.setattr(runner, name, nothing)
    runner._line, runner._log = line, Said()  # type: ignore[assignment]
    with pytest.raises(EOFError):
        asyncio.run(runner._listen(None))
    return [[at for at in said if begin < at <= end] for begin, end in silences]


def test_each_silence_is_said_at_growing_intervals_of_ten_minutes_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard that counted for the process's life said nothing of a third outage of nine hours."""
    hour = 3600.0
    silences = [(10.0, 10 * hour), (18 * hour, 21 * hour), (41 * hour, 50 * hour)]
    for (begin, end), said in zip(silences, lines_of_silences(monkeypatch, silences), strict=True):
        gaps = [after - before for before, after in itertools.pairwise([begin, *said, end])]
        assert gaps[0] <= 2 * module.ASK_SECONDS + 2
        assert max(gaps) <= module.LONGEST_GAP + module.ASK_SECONDS + 2
        assert len(said) <= (end - begin) / module.LONGEST_GAP + 6


def test_a_server_that_is_silent_again_and_again_makes_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 2 * module.ASK_SECONDS
    silences = [(most * number + 1, most * (number + 1)) for number in range(500)]
    assert sum(map(len, lines_of_silences(monkeypatch, silences))) <= 500


def module_decode(data: bytes) -> Any:
    from codream_protocols.messages import decode_to_server

    return decode_to_server(data)


def test_an_address_that_is_none_is_refused() -> None:
    async def scenario(whole: Federation) -> None:
        await whole.runner(0, address="tcp://nowhere").run()

    with pytest.raises(AddressRefused):
        over_network(Federation(), scenario)


def test_refusals_tell_the_server_a_code_and_public_facts_and_the_log_all() -> None:
    """What a client finds is its own; the log is the control."""

    async def script(whole: Federation, running: Any) -> Any:
        await hello(whole)
        await whole.send(0, Welcome("secure-codream/2", 3600.0, bytes(32)))
        await whole.send(0, Invitation(Offer(0, (0, 1, 2), whole.charter.first_head)))
        return await refusals_of(whole, 1)

    refusals, log = scripted(script, whole=Federation(policy=Policy(most_total_steps=1)))
    assert refusals == [Refusal("policy", "Invitation", ALLOWED["policy"])]
    (line,) = log.of("refused")
    assert "4 more steps after 0" in line["found"]
    assert [level for level, event, _ in log.lines if event == "refused"] == ["error"]  # a person must look


def test_what_is_sent_of_a_refusal_is_the_same_for_every_finding() -> None:
    kinds: list[Any] = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)
    ]
    codes = [kind.code for kind in kinds]
    for code in codes:
        assert refusal(code, "Published") == refusal(code, "Published")
        msgspec.msgpack.encode(refusal(code, "Published"))
    assert set(ALLOWED) <= set(codes)


def test_floods_are_cut_short_in_the_log_and_in_what_is_sent() -> None:
    """5,000 refusals gave 5,000 lines; 11,231 beats came in 5 s."""

    async def script(whole: Federation, running: Any) -> Any:
        await hello(whole)
        await whole.send(0, Welcome("secure-codream/2", 0.1, bytes(32)))
        for _ in range(1500):
            await whole.send(0, Invitation(Offer(0, (0, 1), whole.charter.first_head)))
            await whole.send(0, Refusal("unexpected", "nothing", "nothing"))
            await whole.send(0, Refusal("hello-needed", "nothing", "nothing"))
            await whole.send(0, Welcome("secure-codream/2", 0.1, whole.charter.first_head))
        return await collect(whole, 3.0)

    found, log = scripted(script)
    kinds = [type(message) for message in found]
    assert kinds.count(Refusal) <= 16 + 2 * 10
    assert kinds.count(Hello) <= 16 + 4 * 10
    assert kinds.count(Beat) <= 20 * 10
    for event in ("refused", "refused-by-server"):
        assert 100 <= len(log.of(event)) <= 220


def test_flood_of_refusals_with_ever_new_codes_is_cut_short_in_the_log() -> None:
    async def script(whole: Federation, running: Any) -> Any:
        await hello(whole)
        for number in range(1500):
            await whole.send(0, Refusal(f"made-up-{number}", "nothing", "nothing"))
        return await collect(whole, 2.0)

    _, log = scripted(script)
    assert 100 <= len(log.of("refused-by-server")) <= 110


def test_message_of_very_many_parts_is_refused_and_not_kept() -> None:
    """Each part took 40 times its size here; what is dropped is never there at once."""
    parts = 100_000

    async def script(whole: Federation, running: Any) -> Any:
        await hello(whole)
        socket, route = whole._sockets[0], whole._routes[0]
        tracemalloc.start()
        try:
            await socket.send_multipart([route, *[b"xx"] * parts])
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            refusals = await refusals_of(whole, 1)
            return refusals, tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()

    (refusals, peak), log = scripted(script, most_steps=4)
    assert refusals == [Refusal("malformed", "a message", ALLOWED["malformed"])]
    assert "parts or more" in log.of("refused")[0]["found"]
    assert peak < 8 * parts  # a list of them alone would take as much


def test_too_many_frames_and_nested_messages_are_refused_at_once() -> None:
    async def script(whole: Federation, running: Any) -> Any:
        await hello(whole)
        socket, route = whole._sockets[0], whole._routes[0]
        await socket.send_multipart([route, *[b""] * 20])
        await socket.send_multipart([route, b"\x91" * (1 << 20)])
        return await refusals_of(whole, 2)

    refusals, _ = scripted(script, most_steps=4)
    assert refusals == [Refusal("malformed", "a message", ALLOWED["malformed"])] * 2


# -- what is computed ---------------------------------------------


class Machine:
    """A protocol machine whose plan a test sets."""

    def __init__(self, whole: Federation) -> None:
        self.charter, self.certified, self.plan = whole.charter, 0, b""
        self.step, self.provided, self.wrong = 0, [], False  # type: ignore[var-annotated]

    @property
    def progress(self) -> tuple[bytes, int]:
        return self.plan, self.step

    def hello(self) -> Hello:
        return Hello(("secure-codream/2",), bytes(32), bytes(32), 0, b"", 0)

    def receive(self, message: Any, frames: Any) -> list[Any]:
        from codream_protocols.client import Compute

        if isinstance(message, GivenUp):
            return [Ended("the server or a member changed the sum of step 7", wrong_sum=True)]
        self.plan, self.step = message.plan, message.step
        spec = VectorSpec("numbers", (Block("x", 1, 1.0),))
        return [Compute(message.plan, message.step, spec, Task(f"{message.plan[:1].decode()}{message.step}", {}))]

    def provide(self, plan: bytes, step: int, values: Any) -> list[Any]:
        if plan == self.plan:
            self.provided.append((self.plan[:1].decode(), step, values))
        return []

    def abandon(self) -> None:
        self.plan = b""


def asked(plan: str, step: int) -> Any:
    from codream_protocols.messages import Survivors

    return Survivors(plan.encode() * 32, step, (0, 1, 2))


def test_superseded_computations_are_dropped_but_for_an_epochs_first() -> None:
    """Three epochs ask while the first still computes. What nobody waits for is not computed, and what was computed
    for an epoch that is over goes to no later one; an epoch's first step is, since it tells that an epoch began."""
    whole, go, calls = Federation(), threading.Event(), []
    machine = Machine(whole)

    class Waiting:
        def compute(self, task: Task, spec: VectorSpec) -> Any:
            calls.append(task.name)
            go.wait(10)
            return task.name

        def learn(self, number: int, publication: Publication) -> None: ...

    async def script(whole: Federation, running: Any) -> None:
        await hello(whole)
        for plan, step in (("a", 0), ("b", 0), ("b", 1), ("c", 0), ("c", 1), ("c", 2)):
            await whole.send(0, asked(plan, step))
            await asyncio.sleep(0.1)
        go.set()
        await asyncio.sleep(0.5)

    scripted(script, whole=whole, protocol=machine, learner=Waiting())
    assert calls == ["a0", "c0", "c2"]
    assert machine.provided == [("c", 0, "c0"), ("c", 2, "c2")]


def test_a_wrong_sum_is_said_loudly() -> None:
    whole = Federation()

    async def script(whole: Federation, running: Any) -> None:
        await hello(whole)
        await whole.send(0, GivenUp(bytes(32), "x"))
        await asyncio.sleep(0.3)

    _, log = scripted(script, whole=whole, protocol=Machine(whole))
    assert [(level, words["found"]) for level, event, words in log.lines if event == "wrong-sum"] == [
        ("error", "the server or a member changed the sum of step 7")
    ]


def test_a_journal_that_fails_ends_the_client() -> None:
    """Going on without it would join a plan that a restart forgets."""
    whole = Federation()

    class Full:
        def joined(self, epoch: int, plan: bytes) -> None:
            raise JournalError("a full disk", "room")

    async def script(whole: Federation, running: Any) -> None:
        await hello(whole)
        await whole.send(0, Invitation(Offer(0, (0, 1, 2), whole.charter.first_head)))
        await asyncio.wait_for(running, 10)

    with pytest.raises(JournalError, match="full disk"):
        scripted(script, whole=whole, protocol=whole.protocol(0, journal=Full()))


def test_a_client_that_was_killed_comes_back_by_its_journal(tmp_path: Any) -> None:
    """The second process replays what is certified, joins no epoch again, and learns the rest."""
    whole, learner = Federation(), FakeLearner()

    def opened() -> FileJournal:
        return FileJournal.open(tmp_path, charter=whole.charter.digest, member="client-1")

    async def scenario(whole: Federation) -> int:
        serving = asyncio.ensure_future(whole.serve())
        others = [asyncio.ensure_future(whole.runner(number).run()) for number in (1, 2)]
        with opened() as journal:
            first = asyncio.ensure_future(whole.runner(0, protocol=whole.protocol(0, journal=journal)).run())
            while whole.server.certified < 1 or whole.server.step != 1:
                await asyncio.sleep(0.002)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        with opened() as journal:
            memory = journal.memory
            assert len(memory.certified) == 1 and memory.next_epoch == 2 and memory.attempts == 1
            published = list(certified_epochs(whole.charter, whole.roster, whole.course, memory.certified))
            assert [number for number, _, _ in published] == [1]
            assert "soft_labels" in published[0][2].publication()
            protocol = whole.protocol(0, journal=journal, memory=memory)
            await asyncio.gather(whole.runner(0, learner, protocol=protocol).run(), serving, *others)
            return protocol.steps_begun

    assert over_network(whole, scenario) >= 4 + 1 + 4 + 1
    assert [call for call in learner.calls if "learn" in call] == ["learn 2", "learn 3"]
    assert zmq is not None


def test_of_many_that_ask_for_it_one_hello_is_the_answer() -> None:
    async def script(whole: Federation, running: Any) -> int:
        await hello(whole)
        await whole.send(0, Welcome(PROTOCOL, 3600.0, whole.charter.first_head))
        for _ in range(20):
            await whole.send(0, Refusal("hello-needed", "a client", "Hello first"))
        await hello(whole)
        said = await collect(whole, 0.5)
        assert not any(isinstance(message, Hello) for message in said)
        await whole.send(0, Welcome(PROTOCOL, 3600.0, whole.charter.first_head))
        await whole.send(0, Refusal("hello-needed", "a client", "Hello first"))  # control: once it was answered
        await hello(whole)
        return 0

    scripted(script)


def test_a_record_with_more_members_in_its_steps_than_the_federation_has_is_refused_unread() -> None:
    async def script(whole: Federation, running: Any) -> Any:
        await hello(whole)
        fields = [[], [], b"", [[[199] * 200, bytes(16)]] * 10, []]
        await whole._sockets[0].send_multipart([whole._routes[0], msgspec.msgpack.encode(["epoch-record", *fields])])
        return await refusals_of(whole, 1)

    refusals, log = scripted(script, most_steps=4)
    assert refusals == [Refusal("malformed", "a message", ALLOWED["malformed"])]
    assert "a record whose steps have" in log.of("refused")[0]["found"]
