"""A real sshd on loopback with keys of its own, and a user of its own where the tests run as root.

The developer's ~/.ssh is neither read nor written: `ssh` is found on PATH, and the one that stands there here adds a
configuration file. That is also what a user's own ~/.ssh/config does to a push.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
SSH = shutil.which("ssh")
ALIAS = "board"
"""The machine's name in the configuration file, with its key among the known hosts."""
STRANGER = "stranger"
"""The same machine, whose key is not known."""
LOCKED_OUT = "locked-out"
"""The same machine, to be entered with a key that it does not know."""


@dataclass(frozen=True)
class Far:
    """The far end. home: of its user, as whom `become` runs a command; bin: holds the `ssh` for PATH."""

    home: Path
    bin: Path
    port: int
    log: Path
    become: tuple[str, ...]
    server: int

    def sessions(self) -> list[int]:
        """Processes of sshd that serve a connection."""
        return [
            each.pid for each in psutil.Process(self.server).children(recursive=True) if each.name().startswith("sshd")
        ]

    def script(self, name: str, text: str) -> Path:
        """A program at the far end."""
        path = self.home / name
        path.write_text(text)
        path.chmod(0o755)
        return path


def missing() -> str | None:
    """Why there can be no sshd here; None where there can."""
    for name, found in (("sshd", SSHD), ("ssh", SSH), ("ssh-keygen", shutil.which("ssh-keygen"))):
        if found is None:
            return f"there is no {name} here (Debian: apt-get install openssh-server openssh-client)"
    if os.getuid() == 0 and not (shutil.which("useradd") and shutil.which("setpriv")):
        return "as root these tests need useradd and setpriv, for a far end that is not root"
    return None


@contextmanager
def running() -> Iterator[Far]:
    """An sshd and its user, both gone afterwards. Skips the test where that user may not run this Python."""
    with ExitStack() as stack:
        # Not under pytest's own folder, which is closed to others.
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="frs-sshd-")))
        place.chmod(0o755)
        user, home, become = stack.enter_context(_user(place))
        if not _can_run(become, sys.executable):
            pytest.skip(f"the user at the far end may not run {sys.executable}")
        port = _free_port()
        _keys(place, user, home, become)
        bin_folder = _client(place, user, port)
        (place / "sshd_config").write_text(_server_config(place, port))
        log = place / "sshd.log"
        assert SSHD is not None
        server = subprocess.Popen(
            [*become, SSHD, "-D", "-e", "-f", place / "sshd_config"],
            stdout=subprocess.DEVNULL,
            stderr=stack.enter_context(log.open("w")),
            cwd="/",
        )
        stack.callback(_end, server)
        _wait_for(port, server, log)
        yield Far(home, bin_folder, port, log, become, server.pid)


def _can_run(become: Sequence[str], program: str) -> bool:
    """Whether that user may run it; by way of a shell, since setpriv itself still is root as it finds the program."""
    command = [*become, "sh", "-c", '"$0" --version', program]
    return subprocess.run(command, capture_output=True, check=False, cwd="/").returncode == 0


@contextmanager
def _user(place: Path) -> Iterator[tuple[str, Path, tuple[str, ...]]]:
    """Name, home, and the words before a command that is to run as this user: oneself, or, of root, a user who is made for it.

    sshd runs as that user too, so it lets nobody else in and needs nothing of the system.
    """
    home = place / "home"
    if os.getuid() != 0:
        home.mkdir()
        # sshd takes the home folder from the system: only the work below it is moved, by the server's own setting.
        yield pwd.getpwuid(os.getuid()).pw_name, home, ()
        return
    name = f"frs-push-{os.getpid()}"
    # A password that nothing matches; sshd takes an account without one for locked.
    made = ["useradd", "--create-home", "--home-dir", str(home), "--shell", "/bin/sh", "--password", "*", name]
    subprocess.run(made, check=True, capture_output=True)
    try:
        become: tuple[str, ...] = ("setpriv", "--reuid", name, "--regid", name, "--clear-groups")
        if not _can_run(become, sys.executable):
            # This Python lies in root's own home. To read, not to write, what is closed to others.
            become = (*become, "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
        yield name, home, become
    finally:
        for process in psutil.process_iter(["username"]):
            if process.info["username"] == name:
                process.kill()
        subprocess.run(["userdel", name], check=True, capture_output=True)


def _keys(place: Path, user: str, home: Path, become: Sequence[str]) -> None:
    """The host's key and the user's, each readable by whom it belongs to, and one that opens nothing."""
    for folder, names in ((place, ("user_key", "other_key")), (home, ("host_key",))):
        for name in names:
            owner = become if folder == home else ()
            subprocess.run(
                [*owner, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True, cwd="/"
            )
    shutil.copy(place / "user_key.pub", place / "authorized_keys")


def _server_config(place: Path, port: int) -> str:
    home = place / "home"
    return f"""\
Port {port}
ListenAddress 127.0.0.1
HostKey {home}/host_key
AuthorizedKeysFile {place}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv XDG_CACHE_HOME={home}/cache
"""


def _client(place: Path, user: str, port: int) -> Path:
    host_key = " ".join((place / "home" / "host_key.pub").read_text().split()[:2])
    (place / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    (place / "empty").write_text("")
    sections = (
        (ALIAS, "user_key", "known_hosts"),
        (STRANGER, "user_key", "empty"),
        (LOCKED_OUT, "other_key", "known_hosts"),
    )
    (place / "ssh_config").write_text(
        "".join(
            f"Host {alias}\n HostName 127.0.0.1\n Port {port}\n User {user}\n IdentityFile {place}/{key}\n"
            f" IdentitiesOnly yes\n UserKnownHostsFile {place}/{known}\n GlobalKnownHostsFile /dev/null\n"
            for alias, key, known in sections
        )
    )
    bin_folder = place / "bin"
    bin_folder.mkdir()
    (bin_folder / "ssh").write_text(f'#!/bin/sh\nexec {SSH} -F {place}/ssh_config "$@"\n')
    (bin_folder / "ssh").chmod(0o755)
    return bin_folder


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    server.wait(timeout=30)
