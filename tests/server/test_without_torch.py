"""An aggregator is a small machine: the base install, and nothing else, must run the server.

The environment is built from this one: a folder of links to the base install's dependencies (their closure, without any
extra) and to the project's packages. Nothing else can be imported from it.
"""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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


def run(base: Path, code: str) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.path.insert(0, {str(base)!r})\n{code}"
    return subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=60)


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
