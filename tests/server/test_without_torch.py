"""An aggregator is a small machine: the base install, and nothing else, must run the server.

The environment is built from this one: a folder of links to the base install's dependencies (their closure, without any
extra) and to the project's packages. Nothing else can be imported from it.
"""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from secure_codream.extras import require

ROOT = Path(__file__).parents[2]
PACKAGES = ("protocols/codream_protocols", "clients/codream_clients", "server/codream_server", "secure_codream")


def closure(names: set[str]) -> set[str]:
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.add(requirement.name)
    return found


@pytest.fixture(scope="module")
def base_install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    required = {Requirement(text).name for text in metadata.requires("secure-codream") or [] if "extra ==" not in text}
    for name in closure(required):
        distribution = metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            source = Path(str(distribution.locate_file(top)))
            if source.exists() and not (folder / top).exists():
                (folder / top).symlink_to(source)
    for package in PACKAGES:
        (folder / Path(package).name).symlink_to(ROOT / package)
    return folder


def run(base: Path, code: str, *arguments: str, at: Path | None = None) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.path.insert(0, {str(base)!r})\n{code}"
    command = [sys.executable, "-I", "-S", "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=at)


def test_torch_cannot_be_imported_there(base_install: Path) -> None:
    assert "No module named 'torch'" in run(base_install, "import torch").stderr


def test_server_runs_without_torch(base_install: Path) -> None:
    done = run(
        base_install,
        "import codream_server.runner, codream_server.record_folder, codream_server.privacy_statement\n"
        "import codream_server.feddream\n"
        "import secure_codream.deployment.server, secure_codream.deployment.provision, secure_codream.cli\n"
        "import secure_codream.reports.report\n"
        "assert 'torch' not in sys.modules\nprint('runs')",
    )
    assert done.stdout.strip() == "runs", done.stderr


def test_a_client_does_need_it(base_install: Path) -> None:
    """The control: what needs torch fails there, so the test above can fail."""
    assert "No module named 'torch'" in run(base_install, "import codream_clients.learning.student").stderr


def test_server_of_the_api_runs_without_torch(base_install: Path) -> None:
    done = run(base_install, "from secure_codream import Server\nassert 'torch' not in sys.modules\nprint('runs')")
    assert done.stdout.strip() == "runs", done.stderr


CLIENT = 'pip install "secure-codream[client]"'


@pytest.mark.parametrize("name", ["Client", "LocalRun", "open_model", "run_local"])
def test_what_the_api_needs_torch_for_says_so_in_one_line(base_install: Path, name: str) -> None:
    last = run(base_install, f"from secure_codream import {name}").stderr.splitlines()[-1]
    assert last.startswith("secure_codream.extras.ExtraMissing: found no ") and last.endswith(CLIENT)


@pytest.fixture(scope="module")
def federation(base_install: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provisioned, which the base install can do."""
    at = tmp_path_factory.mktemp("federation")
    (at / "config.toml").write_text("[task]\nshape = [1, 8, 8]\nclasses = 10\n")
    clients = [word for name in "abc" for word in ("--client", f"{name}=mlp")]
    arguments = ["provision", "config.toml", *clients, "--address", "tcp://127.0.0.1:7447", "--out", "out"]
    done = run(base_install, MAIN, *arguments, at=at)
    assert done.returncode == 0, done.stderr
    return at


MAIN = "from secure_codream.cli import main; main()"


@pytest.mark.parametrize(
    "line",
    [
        "client out/clients/a",
        "compare --data digits",
        "threats --list",
        "predict out/clients/a config.toml --out predicted.csv",
        *(
            pytest.param(line, marks=pytest.mark.exhaustive)
            for line in (
                "sweep --epsilons 2 --data digits",
                "threats",
                "audit",
                "evaluate out/clients/a digits",
                "export out/clients/a --out model.onnx",
                "data digits",
                "demo --rounds 1",
            )
        ),
    ],
)
def test_command_without_its_extra_ends_with_2_and_one_line_that_names_it(
    base_install: Path, federation: Path, line: str
) -> None:
    done = run(base_install, MAIN, *line.split(), at=federation)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith("secure-codream: found no ") and done.stderr.strip().endswith(CLIENT)
    assert not (federation / "runs").exists()


@pytest.mark.parametrize("line", ["report out", "verify out", "check --help", "roster show out/server"])
def test_other_commands_need_no_extra(base_install: Path, federation: Path, line: str) -> None:
    assert "found no " not in run(base_install, MAIN, *line.split(), at=federation).stderr.replace(
        "found no record", ""
    )


def test_what_is_only_required_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray.py").write_text("raise SystemExit('loaded')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    require("ray")


def test_every_package_of_an_extra_is_known_to_bring_it() -> None:
    """What no module of `EXTRAS` stands for would end in a traceback where it is missing."""
    from secure_codream.extras import EXTRAS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    modules = {"scikit-learn": "sklearn"}
    found = {
        modules.get(package.name, package.name): extra
        for extra, texts in project["optional-dependencies"].items()
        for package in map(Requirement, texts)
        if extra not in ("dev", "docs") and package.name != "secure-codream"
    }
    assert {**found, "PIL": "client"} == EXTRAS
