"""Units, image and Compose file say what the program takes; docs/operations.md says what they say.

No container engine runs where this is developed: the image's install commands run in a virtual environment.
"""

from __future__ import annotations

import json
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


def copy_context(target: Path) -> None:
    """What an image is built from: the checkout without what .dockerignore names."""
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()

    def left_out(folder: str, names: list[str]) -> set[str]:
        inside = Path(folder).relative_to(ROOT)
        return {name for name in names if (inside / name).as_posix() in patterns or f"**/{name}" in patterns}

    shutil.copytree(ROOT, target, ignore=left_out, symlinks=True)


@pytest.mark.exhaustive
def test_the_images_install_commands_install_the_program(tmp_path: Path) -> None:
    """The Dockerfile, line by line, with folders of this machine; one that this does not know fails.

    The aggregator's is installed; of the client's, which brings torch, pip finds all that it would install.
    """
    source, environment = tmp_path / "src", tmp_path / "opt" / "secure-codream"
    said: list[str] = []

    def here(words: str) -> str:
        return words.replace("/opt/secure-codream", str(environment)).replace("/src", str(source))

    def run(command: str, **variables: str) -> None:
        done = subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin", **variables},
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)

    variables: dict[str, str] = {}
    for word, rest in re.findall(r"^([A-Z]+) (.*)$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE):
        match word, rest.split():
            case "FROM", [image, *_]:
                assert image == f"python:{'.'.join(map(str, sys.version_info[:2]))}-slim"  # what the constraints are of
            case "ARG", [default]:
                assert default == 'EXTRA=""'
            case "COPY", [".", "/src"]:
                copy_context(source)
            case "COPY", ["--from=build", made, place]:
                assert made == place and Path(here(made)).is_dir()  # scripts of an environment name its place
            case "RUN", ["python", *_]:
                run(here(rest).replace("python", sys.executable, 1))
            case "RUN", [program, "install", *_] if program == "/opt/secure-codream/bin/pip":
                run(here(rest), EXTRA="")
                run(here(rest).replace(" install ", " install --dry-run --quiet ", 1), EXTRA="[client]")
            case "RUN", ["useradd", *_]:
                pass  # this machine's users are left alone
            case "ENV", pairs:
                variables = dict(pair.partition("=")[::2] for pair in pairs)
            case "ENTRYPOINT", [program]:
                run(f"{here(json.loads(program)[0])} --version", **variables)
            case _:
                assert (word, rest) in (("USER", "codream"), ("WORKDIR", "/party"), ("STOPSIGNAL", "SIGTERM"))
    assert said[-1].startswith("secure-codream ")
    run(f"{environment}/bin/python -m pip list --format freeze")
    assert "torch==" not in said[-1]
