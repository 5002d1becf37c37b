"""Parties of a federation with keys of their own: a folder each, as on machines apart, and the commands they type."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.system.processes import ENVIRONMENT, SECURE_CODREAM


def run(*words: str | Path, code: int = 0, cwd: Path | None = None) -> str:
    """What a command prints that must end with this exit code; with 3 or another failure, what it says of it."""
    done = subprocess.run(
        [*SECURE_CODREAM, *words], capture_output=True, text=True, env=ENVIRONMENT, timeout=900, cwd=cwd, check=False
    )
    assert done.returncode == code, (done.returncode, done.stderr, done.stdout)
    return done.stdout if code == 0 else " ".join((done.stdout + done.stderr).split())


def refused(*words: str | Path) -> str:
    """What a command says that must end with exit code 3."""
    return run(*words, code=3)


class Study:
    """The parties' folders.

    Args:
        folder: of the whole study; what passes between parties are the files that the commands name.
        config: all settings, as `config.toml` has them.
        client: what a site's `client.toml` says, given its name.
    """

    def __init__(self, folder: Path, config: str, client: str) -> None:
        self.folder, self.administrator, self.server = folder, folder / "administrator", folder / "server"
        self._config, self._client = config, client

    def site(self, name: str) -> Path:
        return self.folder / "clients" / name

    def begin(self, names: str) -> str:
        """All keys, all requests and the first roster; the administrator's fingerprint."""
        made = run("keygen", self.administrator, "--administrator")
        run("keygen", self.server, "--server")
        run("join-request", self.server, "--address", "tcp://127.0.0.1:7447")
        clients = [word for name in names for word in ("--client", self.request(name))]
        hub = self.server / "server.join.json"
        run("roster", "create", self.administrator, "--name", "study", "--server", hub, *clients)
        return made.rpartition("site: ")[2].strip()

    def request(self, name: str) -> Path:
        """A site makes its keys and asks to join."""
        folder = self.site(name)
        folder.mkdir(parents=True)
        (folder / "client.toml").write_text(self._client.format(name=name, part="abcd".index(name)))
        run("keygen", folder, "--name", name)
        run("join-request", folder)
        return folder / f"{name}.join.json"

    def charter(self, rounds: int, *options: str | Path) -> Path:
        """The administrator signs; what is handed out."""
        config = self.folder / "config.toml"
        config.write_text(self._config.format(rounds=rounds))
        said = run("charter", self.administrator, config, *options)
        number = len(list(self.administrator.glob("charter-*")))
        assert f"{self.administrator}/charter-{number}" in said
        return self.administrator / f"charter-{number}"

    def accept(self, name: str, offered: Path, *options: str) -> str:
        """A site accepts, and its operator sends the acceptance to the server's."""
        said = run("roster", "verify", self.site(name), offered, *options, "--accept")
        (self.server / "acceptances").mkdir(exist_ok=True)
        shutil.copy(self.site(name) / "acceptance.json", self.server / "acceptances" / f"{name}.json")
        return said

    def events(self, name: str) -> list[Any]:
        lines = (self.site(name) / "log.jsonl").read_text().splitlines()
        return [json.loads(line)["event"] for line in lines]
