"""Units, image and Compose file say what the program takes; docs/operations.md says what they say.

No container engine runs where this is developed: the image's install commands run in a virtual environment.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.pages import ROOT
from tests.secure_codream.test_documented_commands import refusal

DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
PROGRAM = "/opt/secure-codream/bin/secure-codream"


def instructions(word: str) -> list[str]:
    """What follows this word in the Dockerfile, line by line."""
    return re.findall(rf"^{word} (.*)$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)


def composed() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="the Compose file is read by what the extra docs brings")
    services: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    return services


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_start_a_command_that_is_there(unit: Path) -> None:
    (start,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
    program, *words = shlex.split(start)
    assert program == PROGRAM and refusal(words) == ""
    assert words[0] in unit.name and words[1].startswith("/var/lib/secure-codream/")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_the_units(unit: Path, tmp_path: Path) -> None:
    analyse = shutil.which("systemd-analyze")
    if analyse is None:
        pytest.skip("no systemd-analyze here")
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text(encoding="utf-8").replace(PROGRAM, sys.executable))  # one that is there
    done = subprocess.run([analyse, "verify", "--man=no", copy], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_page_says_what_the_units_say() -> None:
    for said in re.findall(r"^\| `([A-Z]\w+=[\w-]+)`", PAGE, re.MULTILINE):
        assert any(f"\n{said}\n" in unit.read_text(encoding="utf-8") for unit in UNITS), said
    for unit in UNITS:
        assert "\nRestartPreventExitStatus=2 3\n" in unit.read_text(encoding="utf-8")
        assert f"deploy/{unit.name}" in PAGE


def test_a_site_has_a_place_that_lasts_for_what_its_machine_has_spent() -> None:
    """The service's user has no home of its own, and a container's is gone with it."""
    (unit,) = (one.read_text(encoding="utf-8") for one in UNITS if "client" in one.name)
    (folder,) = re.findall(r"^Environment=XDG_STATE_HOME=(.*)$", unit, re.MULTILINE)
    (written,) = re.findall(r"^StateDirectory=(.*)$", unit, re.MULTILINE)
    (home,) = re.findall(r"useradd .*--home-dir (\S+)", PAGE)
    assert home == f"/var/lib/{written}" and folder == f"{home}/.local/state"  # as `sudo -u codream` finds it
    (state,) = re.findall(r"XDG_STATE_HOME=(\S+)", "\n".join(instructions("ENV")))
    mounted = dict(volume.partition(":")[::2] for volume in composed()["site"]["volumes"])
    assert mounted["./state"] == state and not any(state in run for run in instructions("RUN"))
    for ignored in (".gitignore", ".dockerignore", "pyproject.toml"):
        assert "deploy/state" in (ROOT / ignored).read_text(encoding="utf-8"), ignored


def test_image_and_compose_file_start_commands_that_are_there() -> None:
    services = composed()
    assert set(services) == {"hub", "site"} and instructions("ENTRYPOINT") == [f'["{PROGRAM}"]']
    for service in services.values():
        assert refusal(service["command"]) == "" and (ROOT / service["build"]["dockerfile"]).is_file()
        assert service["user"].startswith(re.findall(r"--uid (\d+)", "\n".join(instructions("RUN")))[0])
        assert service["command"][1] == service["volumes"][0].partition(":")[2] == instructions("WORKDIR")[0]
    assert services["hub"]["ports"] == ["7447:7447"] and "ports" not in services["site"]


@pytest.mark.exhaustive
def test_the_images_install_commands_install_the_program(tmp_path: Path) -> None:
    """The aggregator's for real; the client's, which brings torch, as far as pip finds all that it would install."""
    source, environment = tmp_path / "src", tmp_path / "opt"
    left_out = shutil.ignore_patterns(".git", ".venv", "__pycache__", "runs", "site", "dist")
    shutil.copytree(ROOT, source, ignore=left_out)
    commands = [
        run.replace("/opt/secure-codream", str(environment)).replace("/src", str(source))
        for run in instructions("RUN")
        if "/opt/secure-codream" in run
    ]
    make, install = commands
    subprocess.run(make.replace("python ", f"{sys.executable} ", 1), shell=True, check=True, timeout=300)
    for extra, command in (("", install), ("[client]", install.replace(" install ", " install --dry-run --quiet ", 1))):
        done = subprocess.run(
            command,
            shell=True,
            capture_output=True,
            text=True,
            env={"EXTRA": extra, "PATH": "/usr/bin:/bin"},
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
    said = subprocess.run([environment / "bin" / "secure-codream", "--version"], capture_output=True, text=True)
    assert said.stdout.startswith("secure-codream ")
    pip = [environment / "bin" / "python", "-m", "pip", "list", "--format", "freeze"]
    assert "torch==" not in subprocess.run(pip, capture_output=True, text=True, check=True).stdout
