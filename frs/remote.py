"""Another machine, over this system's OpenSSH: commands, bytes in both directions, and what ssh means when it gives up.

Every call is a connection of its own. A shared one would save some handshakes and bring a background process, a socket
whose path may be too long, and errors of its own; whoever has one in ~/.ssh/config has it here too. Options are the
user's, except those without which a program could hang, or be asked a question.

At the far end a POSIX shell and the usual small tools are enough: no sftp server, which small systems lack.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from frs.errors import RemoteError, RuntimeMissing

HEARTBEAT = 10.0
"""Seconds between signs of life to a command that is watched; `frs.interrupts.end_unattended` listens for them."""
GRACE = 15.0
"""Seconds that the far end has to end in order when a call is broken off."""
ANSWER = 1 << 24
"""Bytes."""

_OPTIONS = {
    "BatchMode": "yes",  # never asks for anything
    "ConnectTimeout": "20",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "3",
    "RemoteCommand": "none",
    "ClearAllForwardings": "yes",  # those of a host's own section: another session may hold their ports
}
_HOST = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._+-]*@)?(?P<machine>[A-Za-z0-9_][A-Za-z0-9._:%-]*)")
_SLUG = 64
_HERE = "frs-pipeline: here it begins"
"""Before this line a login shell may say what it likes."""
_LOST = 255
"""ssh's exit code for its own troubles."""
_LINE = 4096


class Remote:
    """A machine that ssh can log in to: `host` is "[user@]machine", or a name out of ~/.ssh/config.

    port and identity (a private key) are for what is not in that file. Raises RemoteError for what cannot be a host.
    """

    def __init__(self, host: str, *, port: int | None = None, identity: Path | None = None) -> None:
        match = _HOST.fullmatch(host)
        if match is None:
            raise RemoteError(f"{host!r} is no host; give [user@]machine, or a name out of ~/.ssh/config")
        self.host = host
        self.slug = _slug(match["machine"] + (f"-{port}" if port else ""))
        self._options = [part for key, value in _OPTIONS.items() for part in ("-o", f"{key}={value}")]
        if port is not None:
            self._options += ["-p", str(port)]
        if identity is not None:
            self._options += ["-i", str(identity.absolute()).replace("%", "%%")]  # ssh expands %h and the like

    def command(self, script: str, *arguments: str) -> list[str]:
        """What is started here: `script`, a POSIX shell's, gets the arguments as $1, $2, ... there, whatever is in them."""
        words = ["sh", "-c", f"echo '{_HERE}'; {script}", "sh", *arguments]
        return ["ssh", "-T", *self._options, "--", self.host, f"exec {shlex.join(words)}"]

    def ask(self, script: str, *arguments: str) -> tuple[int, str]:
        """Exit code and standard output, at most `ANSWER` bytes, of a script that answers soon.

        Raises RemoteError where the connection fails, here and below.
        """
        with self._started(script, arguments) as (process, stdin, stdout):
            stdin.close()
            return self._answer(process, stdout)

    def send(self, file: IO[bytes], sent: Callable[[int], None], script: str, *arguments: str) -> tuple[int, str]:
        """The same for a script that reads the file, from where it stands, from its standard input.

        sent: called with the number of bytes after each piece that was handed over.
        """
        with self._started(script, arguments) as (process, stdin, stdout):
            with suppress(BrokenPipeError):  # it reads no more; why is in its answer
                while piece := file.read(1 << 16):
                    stdin.write(piece)
                    stdin.flush()
                    sent(len(piece))
            with suppress(BrokenPipeError):
                stdin.close()
            return self._answer(process, stdout)

    def watch(self, line: Callable[[str], None], script: str, *arguments: str) -> int:
        """Exit code of a script that takes long; `line` is called with each line of its output as it comes.

        Its standard input stays open and gets a newline every `HEARTBEAT` seconds, so that it can know whether anybody is
        still there.
        """
        with self._started(script, arguments) as (process, stdin, stdout):
            over = threading.Event()
            heart = threading.Thread(target=_beat, args=(stdin, over), daemon=True)
            heart.start()
            try:
                while came := stdout.readline(_LINE):
                    line(_text(came).rstrip())
                return process.wait()
            finally:
                over.set()
                heart.join()

    def _answer(self, process: subprocess.Popen[bytes], stdout: IO[bytes]) -> tuple[int, str]:
        answer = stdout.read(ANSWER + 1)
        if len(answer) > ANSWER:
            process.kill()
            raise RemoteError(f"{self.host}: its answer has more than {ANSWER:,} bytes, which none of ours has")
        return process.wait(), _text(answer)

    @contextmanager
    def _started(
        self, script: str, arguments: tuple[str, ...]
    ) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]]:
        """A script that runs there, past whatever its login shell says. However this is left, it and ssh are ended."""
        with tempfile.TemporaryFile() as said:
            try:
                process = subprocess.Popen(
                    self.command(script, *arguments),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    start_new_session=True,  # Ctrl-C is for us: the far end ends first, then ssh
                )
            except FileNotFoundError:
                raise RuntimeMissing(
                    "ssh is not installed here; install OpenSSH's client (Debian: apt-get install openssh-client)"
                ) from None
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                before = _skip_greeting(process.stdout)
                if before is None:
                    yield process, process.stdin, process.stdout
                else:
                    process.wait()
            finally:
                with suppress(BrokenPipeError):
                    process.stdin.close()
                try:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(GRACE)
                finally:
                    if process.poll() is None:
                        process.kill()
                        process.wait()
                    process.stdout.close()
            said.seek(0)
            if process.returncode == _LOST:
                raise RemoteError(f"{self.host}: {_explained(_text(said.read(ANSWER)), self.host)}")
            if before is not None:
                raise RemoteError(
                    f"{self.host}: its login shell runs no command (exit {process.returncode}); it says: "
                    f"{before.strip()[-300:] or 'nothing'}"
                )


def _slug(machine: str) -> str:
    """A file name for a machine: letters, digits, '.', '_', '-'."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", machine)
    if plain == machine and len(plain) <= _SLUG:
        return plain
    return f"{plain[:_SLUG]}-{hashlib.sha256(machine.encode()).hexdigest()[:8]}"


def _skip_greeting(stdout: IO[bytes]) -> str | None:
    """None once the script has begun; what came in its place, if it never does."""
    before = ""
    while came := stdout.readline(_LINE):
        if _text(came).rstrip() == _HERE:
            return None
        before = (before + _text(came))[-_LINE:]
    return before


def _beat(stdin: IO[bytes], over: threading.Event) -> None:
    with suppress(OSError, ValueError):  # it has ended; that is seen elsewhere
        while not over.wait(HEARTBEAT):
            stdin.write(b"\n")
            stdin.flush()


def _text(came: bytes) -> str:
    return came.decode(errors="replace")


def _explained(said: str, host: str) -> str:
    """What ssh's own words mean, and what to do."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else "ssh gave no reason"
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said:
        return (
            "its host key is not the one that is known: the machine was set up anew, or another one answers in its place. "
            "Find out which; then delete the old key as `ssh` says, and connect once by hand"
        )
    for words, meaning in (
        ("Host key verification failed", f"its host key is not known here; connect once by hand with `ssh {host}`"),
        (
            "Permission denied",
            f"{last}; no key was accepted, and a password cannot be asked for: `ssh-copy-id {host}` puts one there; one with "
            "a passphrase has to be in the agent (`ssh-add`)",
        ),
        ("Could not resolve hostname", f"{last}; correct --host"),
        ("no such identity", f"{last}; correct --identity"),
    ):
        if words in said:
            return meaning
    return f"the connection failed ({last}); look at the machine and the network, and give the same command again"
