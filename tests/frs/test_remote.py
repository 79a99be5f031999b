from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from frs.errors import RemoteError
from frs.remote import Remote


@pytest.mark.parametrize(
    "host",
    [
        "", "-oProxyCommand=touch x", "--", "a;b", "a b", "a\nb", "a\n", "$(id)", "`id`", "a|b", "a'b", 'a"b', "a\0b", "a/b",
        "..", "user@-oProxyCommand=x", "-l@host", "@host", "user@", "a@b@c", "ssh://host", "höst", "a\x1b[2Jb", "*",
    ],
)  # fmt: skip
def test_what_cannot_be_a_host_is_refused(host: str) -> None:
    with pytest.raises(RemoteError, match="is no host"):
        Remote(host)


@pytest.mark.parametrize(
    "host", ["jetson", "user@jetson.local", "a_user@10.0.0.7", "first.last+x@host-1", "fe80::1%eth0", "my_alias"]
)
def test_hosts(host: str) -> None:
    command = Remote(host).command("true")
    assert command[0] == "ssh"
    assert command[command.index("--") + 1] == host


@pytest.mark.parametrize(
    ("host", "slug"),
    [("user@jetson.local", "jetson.local"), ("10.0.0.7", "10.0.0.7"), ("_x", "_x"), ("a" * 64, "a" * 64)],
)
def test_a_folder_is_called_as_the_machine(host: str, slug: str) -> None:
    assert Remote(host).slug == slug
    assert Remote(host, port=2222).slug.startswith(slug + "-")


def test_machines_whose_names_no_folder_may_have_keep_apart() -> None:
    slugs = {Remote(host).slug for host in ("fe80::1", "fe80:-1", "fe80--1", "a" * 65, "a" * 66)}
    assert len(slugs) == 5
    assert all(len(slug) <= 80 and ":" not in slug for slug in slugs)


def test_arguments_reach_the_script_as_they_are() -> None:
    hostile = "'; rm -rf ~; echo $(id) `id` \n"
    remote = Remote("jetson").command("cat", hostile)[-1]
    assert shlex.split(remote)[:3] == ["exec", "sh", "-c"]
    assert shlex.split(remote)[-1] == hostile


def test_ssh_asks_nothing_and_host_keys_are_checked() -> None:
    options = " ".join(Remote("jetson", port=2222, identity=Path("/keys/100%")).command("true"))
    assert "BatchMode=yes" in options
    assert "StrictHostKeyChecking" not in options
    assert "-p 2222" in options
    assert "-i /keys/100%% " in options
