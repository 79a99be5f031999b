"""Builds the images that can be built without a registry, tries them, and writes down what was tested: `make image-test`.

    python -m containers.image_test [--wheels FOLDER ...]

As root on Debian, with buildah and debootstrap; no Docker engine is needed. The base is Debian bookworm with its Python 3.11,
in place of the official image that the Dockerfile names: the same system and the same minor version of Python. `train` and
`device` are built from what is committed, by the Dockerfile as it is, started as their unprivileged user on a read-only root
without a network, and taken through a run: `train` trains, exports and bundles; `device` measures that bundle. `device` is
built twice, and the two images' files are compared. FOLDER has wheels that pip need not download.

In the end containers/tested.json holds the hashes of what was built from; `make test` fails when those have changed since.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import tomllib

from frs.data.trees import ARCHIVE
from frs.packages import fetch
from pipeline import __version__
from stages.common import cache_folder

ROOT = Path(__file__).resolve().parents[1]
STAMP = ROOT / "containers" / "tested.json"
BASE = "localhost/frs-base"
SUITE = "bookworm"
PACKAGES = "python3,python3-venv,ca-certificates"
CERTIFICATES = "/etc/ssl/certs"
CONFIG = "tests/stages/small.yaml"
LOCKS = ("build", "train", "device")
UNWANTED = (
    *(f"usr/bin/{tool}" for tool in ("gcc", "g++", "cc", "c++", "ld", "make")),
    *("root/.cache", "pip", "build", "wheel", "src", "install", "lock.txt", "locks"),
)
TARGETS = {"train": "train", "device": "device", "device-again": "device"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--wheels", type=Path, nargs="*", default=[], help="folders with wheels that pip need not download"
    )
    options = parser.parse_args()
    missing = [tool for tool in ("buildah", "debootstrap", "unshare") if shutil.which(tool) is None]
    if missing:
        parser.error(f"{', '.join(missing)}: not here; apt-get install buildah debootstrap util-linux")
    if os.geteuid() != 0:
        parser.error("only root may make a base image and enter what was built")
    if say("git", "status", "--porcelain").strip():
        parser.error("files differ from the commit; what is tested must have a name: commit first")
    with tempfile.TemporaryDirectory(prefix="frs-images-") as name:
        images = {each: f"localhost/frs-{each}" for each in TARGETS}
        try:
            report = test(images, Path(name), [folder.resolve() for folder in options.wheels])
        finally:
            subprocess.run(["buildah", "rmi", "--force", *images.values(), BASE], check=False, capture_output=True)
    STAMP.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{STAMP.relative_to(ROOT)} is written; commit it")


def test(images: Mapping[str, str], work: Path, wheels: Sequence[Path]) -> dict[str, Any]:
    """What goes into the stamp. Exits, or raises AssertionError, where something fails."""
    commit, epoch = say("git", "log", "-1", "--format=%H %ct").split()
    source = work / "source"
    source.mkdir()
    call("sh", "-c", 'git archive "$1" | tar --extract --directory "$2"', "sh", commit, str(source))
    make_base(work)
    mounts = folders(work)
    facts = {target: build(target, image, source, commit, epoch, wheels) for target, image in images.items()}
    with mounted(images["train"], commit) as (root, settings):
        steps = ["--set=teacher.train.epochs=1", "--set=student.train.epochs=1", "--set=distill.auto_steps=1"]
        inside(root, settings, ["--version"], mounts)
        inside(root, settings, ["check", "/data/small.yaml", "--out", "/runs/check"], mounts)
        inside(root, settings, ["run", "/data/small.yaml", "--locked", *steps], mounts)
        inside(root, settings, ["bundle", "small", "--out", "/runs/small.tar"], mounts)
        facts["train"] |= contents(root)
    with mounted(images["device"], commit) as (root, settings), mounted(images["device-again"], commit) as (other, _):
        differing = sorted(path for path, _ in tree(root).items() ^ tree(other).items())
        assert not differing, f"built twice, these files of `device` differ: {differing[:20]}"
        inside(root, settings, ["--version"], mounts)
        told = inside(root, settings, ["check", "/data/small.yaml", "--out", "/runs/check-device"], mounts, code=1)
        missing = re.findall(r"^FAULT +(\w+)", told, re.MULTILINE)
        assert missing == ["torch", "timm"], f"`device` cannot train, and should say that and no more:\n{told}"
        inside(root, settings, ["device", "run", "/runs/small.tar", "--out", "/runs/device"], mounts)
        facts["device"] |= contents(root)
    return {
        "commit": commit,
        "tested": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "buildah": say("buildah", "--version").strip(),
        "images": facts,
        "inputs": inputs(source),
    }


def folders(work: Path) -> dict[Path, str]:
    """What is mounted: folder -> place. `runs` has the download that the data come from, and is the images' user's."""
    runs, data = work / "runs", work / "data"
    (runs / ".cache/frs-pipeline").mkdir(parents=True)
    shutil.copy(fetch(ARCHIVE, cache_folder()), runs / ".cache/frs-pipeline")
    data.mkdir()
    shutil.copy(ROOT / CONFIG, data / "small.yaml")
    for path in (runs, *runs.rglob("*")):
        os.chown(path, 1000, 1000)
    return {runs: "/runs", data: "/data"}


def inputs(root: Path = ROOT) -> dict[str, str]:
    """sha256 of what decides the two images, beside the package's own code."""
    names = ["Dockerfile", ".dockerignore", "containers/install", *(f"locks/{name}.txt" for name in LOCKS)]
    hashes = {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in names}
    pyproject = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    metadata = [pyproject["build-system"], pyproject["project"], pyproject["tool"]["hatch"]]
    hashes["pyproject.toml"] = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()
    return hashes


def make_base(work: Path) -> None:
    with step(f"base: Debian {SUITE}"):
        tree = work / "base"
        call("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(tree))
        shutil.rmtree(tree / "var/cache/apt")
        container = say("buildah", "from", "scratch").strip()
        root = say("buildah", "mount", container).strip()
        call("cp", "--archive", f"{tree}/.", root)
        call("buildah", "umount", container)
        call("buildah", "commit", "--rm", container, BASE)


def build(target: str, image: str, source: Path, commit: str, epoch: str, wheels: Sequence[Path]) -> dict[str, Any]:
    pip = source.parent / "pip.conf"
    found = "".join(f"\n  {folder}" for folder in wheels)
    pip.write_text(f"[global]\ncert = {CERTIFICATES}/ca-certificates.crt\nfind-links ={found}\n", encoding="utf-8")
    volumes = [CERTIFICATES, f"{pip}:/etc/pip.conf", *map(str, wheels)]
    arguments = [f"BASE_IMAGE={BASE}", f"COMMIT={commit}", f"SOURCE_DATE_EPOCH={epoch}"]
    started = time.monotonic()
    with step(f"build {image}"):
        call(
            *("buildah", "bud", "--isolation", "chroot", "--pull-never", "--no-cache", "--timestamp", epoch),
            *(part for volume in volumes for part in ("--volume", readonly(volume))),
            *(part for argument in arguments for part in ("--build-arg", argument)),
            *("--target", TARGETS[target], "--tag", image, str(source)),
        )
    return {"seconds": round(time.monotonic() - started)}


def readonly(volume: str) -> str:
    source, _, place = volume.partition(":")
    return f"{source}:{place or source}:ro"


@contextmanager
def mounted(image: str, commit: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The root of a new container, and what the image says how it is started."""
    container = say("buildah", "from", "--pull-never", image).strip()
    try:
        settings = json.loads(say("buildah", "inspect", "--type", "image", image))["OCIv1"]["config"]
        said(settings, commit)
        yield Path(say("buildah", "mount", container).strip()), settings
    finally:
        call("buildah", "rm", container)


ENTER = """
set -eu
root=$1; shift
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
while [ "$1" != -- ]; do mount --bind "$1" "$root$2"; shift 2; done
shift
exec chroot "$@"
"""


def inside(
    root: Path, settings: Mapping[str, Any], arguments: Sequence[str], mounts: Mapping[Path, str], code: int = 0
) -> str:
    """What it prints. As `docker run --read-only --network none --tmpfs /tmp` would: the image's user, environment and entry
    point."""
    places = [part for source, place in mounts.items() for part in (str(source), place)]
    user = settings["User"]
    with step(" ".join(["frs-pipeline", *arguments])):
        return call(
            *("unshare", "--mount", "--net", "--pid", "--fork", "sh", "-c", ENTER, "sh", str(root), *places, "--"),
            *(f"--userspec={user}", str(root), "env", "-i", *settings["Env"], *settings["Entrypoint"], *arguments),
            code=code,
        )


def said(settings: Mapping[str, Any], commit: str) -> None:
    """Refuses an image that says other things of itself than it should."""
    assert settings["User"].split(":")[0] not in ("", "0", "root"), settings["User"]
    assert settings["Entrypoint"] == ["frs-pipeline"], settings["Entrypoint"]
    assert set(settings["Volumes"]) == {"/data", "/runs"}, settings["Volumes"]
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in settings["Labels"].items()}
    wanted = {"title": "frs-pipeline", "version": __version__, "revision": commit}
    assert wanted.items() <= labels.items(), labels


def contents(root: Path) -> dict[str, Any]:
    """Refuses what an image should not carry; its size. What `build` mounts leaves an empty file or folder in its place."""
    left = [name for name in UNWANTED if (root / name).exists()]
    assert not left, f"left in the image: {left}"
    size = sum(path.lstat().st_size for path in root.rglob("*") if not path.is_symlink() and path.is_file())
    return {"megabytes": round(size / 1e6)}


def tree(root: Path) -> dict[str, tuple[int, int, int, str]]:
    """Path -> mode, owner, group, and the content's sha256 or where a link points."""
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            with path.open("rb") as file:
                what = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            what = str(path.readlink()) if path.is_symlink() else ""
        found[str(path.relative_to(root))] = (status.st_mode, status.st_uid, status.st_gid, what)
    return found


@contextmanager
def step(title: str) -> Iterator[None]:
    started = time.monotonic()
    print(f"{title} ...", flush=True)
    yield
    print(f"{title}: {time.monotonic() - started:.0f} s", flush=True)


def say(*command: str) -> str:
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, cwd=ROOT).stdout


def call(*command: str, code: int = 0) -> str:
    """What it prints, which is shown where it ends with another code."""
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT)
    if done.returncode != code:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-6000:]}\nexit code {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
