"""Code that a charter names runs only where a person's own file names it too, and then exactly the bytes they named."""

from __future__ import annotations

import hashlib
import py_compile
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codream_protocols.course import Course
from secure_codream.configuration.client import BudgetTable, ClientConfig
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.own_code import load_named, source_digest, source_of
from secure_codream.configuration.reading import ConfigError
from secure_codream.deployment.verify import RecordRefused, verify_record
from secure_codream.reports.starts import starts_of
from tests.secure_codream.small import codream, config_of, record_of

COURSE = """
from pathlib import Path
Path("ran").write_text("{mark}")
import numpy as np
from dataclasses import dataclass
from codream_protocols.course import Task
from codream_protocols.specs import Block, VectorSpec

@dataclass
class Mean:
    settings: object

    @property
    def epochs(self):
        return 1

    def specs(self, honest):
        return (VectorSpec("mean", (Block("value", 2, 1.0),)),)

    def schedule(self, certified):
        return (0,)

    def start(self, seed, certified, last):
        return {{"mean": np.zeros(2, np.float64)}}

    def task(self, state, step):
        return Task("mean", {{}})

    def absorb(self, state, step, sums, count):
        return {{"mean": sums["value"] / count}}

    def publication(self, state):
        return {{"mean": state["mean"]}}

def start(seed, count, shape):
    return np.full((count, *shape), 0.25, np.float32)

NOTHING = 3
"""
REFERENCE = "mine_of_a_charter:Mean"
START = "mine_of_a_charter:start"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the module, in which a process is started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    write()
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("mine_of_a_charter")]:
        del sys.modules[name]


def write(mark: str = "first", more: str = "") -> str:
    """Write the module; its digest."""
    Path("mine_of_a_charter.py").write_text(COURSE.format(mark=mark) + more)
    return source_digest(REFERENCE)


def ran() -> str | None:
    """What the module left behind when it ran, if it did."""
    return Path("ran").read_text() if Path("ran").exists() else None


def with_course(digest: str) -> FederationConfig:
    return config_of(federation={"course": REFERENCE, "rounds": 1}, code={REFERENCE: digest})


def with_start(digest: str) -> FederationConfig:
    return codream(dreams={"batch": 2, "steps": 0, "start": START}, code={START: digest})


def with_public_images(digest: str) -> FederationConfig:
    """A model that is handed down on start images of one's own."""
    ring = {"epsilon": 8.0, "delta": 1e-4, "sample_rate": 0.2, "batch_size": 8.0, "steps": 1, "layout": [["w", [3]]]}
    return config_of(
        federation={"course": "dp-sgd", "rounds": 1},
        task={"shape": (1, 8, 8), "classes": 10},
        dp_sgd=ring,
        dreams={"batch": 2, "start": START},
        code={START: digest},
    )


KINDS = [(with_course, REFERENCE), (with_start, START), (with_public_images, START)]


@pytest.mark.parametrize(("config", "reference"), KINDS)
def test_named_by_both_it_runs(config: Any, reference: str) -> None:
    digest = source_digest(REFERENCE)
    made: Course = make_course(config(digest), {reference: digest})
    assert ran() == "first" and made.epochs >= 1


def test_start_that_was_named_is_where_dreams_begin() -> None:
    digest = source_digest(START)
    state = make_course(with_start(digest), {START: digest}).start(bytes(32), 0, None)
    assert (state["dreams"] == 0.25).all()


@pytest.mark.parametrize(("config", "reference"), KINDS)
@pytest.mark.parametrize("permitted", [{}, {"mine_of_a_charter:other": None}, {"another:Mean": None}])
def test_named_by_the_charter_alone_it_does_not_run_and_the_client_is_told_what_to_do(
    config: Any, reference: str, permitted: dict[str, Any]
) -> None:
    digest = source_digest(REFERENCE)
    with pytest.raises(ConfigError) as caught:
        make_course(config(digest), dict.fromkeys(permitted, digest))
    text = str(caught.value)
    assert "[policy.code] of client.toml" in text and f'"{reference}" = "{digest}"' in text
    assert "mine_of_a_charter.py" in text
    assert ran() is None


def test_a_budget_is_planned_without_code_that_the_client_has_not_permitted(here: Path) -> None:
    pytest.importorskip("torch")
    from secure_codream.deployment.budget import dry_run

    client = ClientConfig(name="alice", model="mlp_gn", budget=BudgetTable(epsilon=8.0, delta=1e-4))
    with pytest.raises(ConfigError, match=r"under .policy.code. of client.toml"):
        dry_run(here, client, with_public_images(source_digest(START)))
    assert ran() is None


@pytest.mark.parametrize(("config", "reference"), KINDS)
def test_changed_source_is_refused_whoever_named_it(config: Any, reference: str) -> None:
    before = source_digest(REFERENCE)
    after = write("second")
    for charter, client in ((before, before), (after, before), (before, after)):
        with pytest.raises(ConfigError, match=r"found source with digest .* is allowed"):
            make_course(config(charter), {reference: client})
        assert ran() is None
    with pytest.raises(ConfigError, match="found source with digest"):
        make_course(config(before))  # a server goes by the charter alone
    assert ran() is None
    make_course(config(after), {reference: after})  # control
    assert ran() == "second"


def test_charter_without_a_digest_is_no_configuration() -> None:
    with pytest.raises(ConfigError, match=r"without an entry in \[code\]"):
        config_of(federation={"course": REFERENCE})
    assert ran() is None


def test_exactly_the_bytes_that_were_hashed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is exchanged as soon as it has been read once."""
    digest, real = source_digest(REFERENCE), Path.read_bytes

    def read_then_exchange(path: Path) -> bytes:
        data = real(path)
        if path.name == "mine_of_a_charter.py":
            path.write_text(COURSE.format(mark="exchanged"))
        return data

    monkeypatch.setattr(Path, "read_bytes", read_then_exchange)
    load_named(REFERENCE, {REFERENCE: digest})
    assert ran() == "first"


def test_neither_compiled_files_nor_modules_of_that_name_run_instead(here: Path) -> None:
    digest = source_digest(REFERENCE)
    Path("evil.py").write_text(COURSE.format(mark="compiled"))
    py_compile.compile("evil.py", cfile=f"__pycache__/mine_of_a_charter.{sys.implementation.cache_tag}.pyc")
    for folder in ("mine_of_a_charter", "first_on_the_path"):
        Path(folder).mkdir()
    Path("mine_of_a_charter/__init__.py").write_text(COURSE.format(mark="package"))
    Path("first_on_the_path/mine_of_a_charter.py").write_text(COURSE.format(mark="path"))
    sys.path.insert(0, str(here / "first_on_the_path"))
    impostor = type(sys)("mine_of_a_charter")
    impostor.Mean = object  # type: ignore[attr-defined]
    sys.modules["mine_of_a_charter"] = impostor
    assert load_named(REFERENCE, {REFERENCE: digest}) is not object
    assert ran() == "first"


def test_module_of_a_package_is_found_without_running_the_package() -> None:
    Path("box").mkdir()
    Path("box/__init__.py").write_text("from pathlib import Path\nPath('ran').write_text('package')\n")
    Path("box/inner.py").write_text("def start(seed, count, shape):\n    return None\n")
    assert source_of("box.inner:start") == Path.cwd() / "box" / "inner.py"
    digest = hashlib.sha256(Path("box/inner.py").read_bytes()).hexdigest()
    assert source_digest("box.inner:start") == digest
    load_named("box.inner:start", {"box.inner:start": digest})
    assert ran() is None


def test_what_is_not_there_or_cannot_be_called_is_named() -> None:
    with pytest.raises(ConfigError, match=r"found no nowhere/at_all\.py here or on the path"):
        source_digest("nowhere.at_all:Course")
    digest = source_digest(REFERENCE)
    for name in ("Missing", "NOTHING"):
        reference = f"mine_of_a_charter:{name}"
        with pytest.raises(ConfigError, match=f"found no '{name}' that can be called"):
            load_named(reference, {reference: digest})


@pytest.mark.parametrize(("config", "reference"), KINDS)
def test_a_file_that_hides_a_librarys_module_is_refused_before_anything_runs(config: Any, reference: str) -> None:
    digest = source_digest(REFERENCE)
    Path("random.py").touch()
    with pytest.raises(ConfigError, match=r"found .*random\.py, which hides Python's own module 'random'"):
        make_course(config(digest), {reference: digest})
    assert ran() is None


def test_code_that_ends_the_process_is_refused_with_what_to_do() -> None:
    digest = write(more="import sys\nsys.exit(0)\n")
    with pytest.raises(ConfigError, match=r"running .* failed: SystemExit: 0; leave out exit\(\)"):
        make_course(with_course(digest))
    digest = write(more="def Mean(settings):\n    exit()\n")
    with pytest.raises(ConfigError, match=r"Mean\(settings\) failed: SystemExit: None; leave out exit\(\)"):
        make_course(with_course(digest))


def test_whoever_verifies_a_record_runs_no_code_that_it_names(tmp_path: Path) -> None:
    digest = source_digest(REFERENCE)
    record_of(tmp_path / "record", with_course(digest), epochs=1)
    Path("ran").unlink()
    with pytest.raises(RecordRefused, match=r"charter\.json.*found in the charter alone"):
        verify_record(tmp_path / "record")
    assert ran() is None
    assert verify_record(tmp_path / "record", permitted={REFERENCE: digest}).epochs == 1


def test_whoever_looks_at_a_report_runs_no_code_that_the_record_names(tmp_path: Path) -> None:
    record_of(tmp_path / "record", with_start(source_digest(START)), epochs=1)
    Path("ran").unlink()
    assert (tmp_path / "record" / "epoch-00000.record").exists() and starts_of(tmp_path / "record", 0) is None
    assert ran() is None
