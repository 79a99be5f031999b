"""The command line. Everything heavy is imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import errno
import json
import math
import os
import shlex
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from frs.errors import FrsError
from pipeline import __version__
from pipeline.console import Console, open_console, printable
from pipeline.device_cli import bundle, device, show_devices
from pipeline.errors import GateFailed, PipelineError, StageFailed
from pipeline.options import Command, run_folder, runs_dir_option

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.stage import Stage

_EPILOG = """\b
Exit codes:
  0  done
  1  failed; what was finished before is kept
  2  a faulty configuration or command line
  3  a gate was not met; the report is whole
  4  another process is at the same run
  130, 143  interrupted (Ctrl-C, SIGTERM); the same `run` continues
"""

_MACHINE = {
    errno.EACCES: "correct the permissions",
    errno.EDQUOT: "make room",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EIO: "look at the disk",
    errno.ENOLCK: "choose a --runs-dir on a file system that has locks",
    errno.EPIPE: "leave the reader of the output open",
    errno.ENFILE: "end other programs that hold files open",
    errno.ENOMEM: "end other programs that take memory",
    errno.ENOTDIR: "choose a place whose folders are folders",
    errno.ESTALE: "mount the network disk again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOSPC: "make room",
    errno.EPERM: "correct the permissions",
    errno.EROFS: "choose a place that can be written to",
}

_EXTRAS = {
    "jinja2": "train",
    "matplotlib": "train",
    "onnx": "train",
    "onnxruntime": "ort",
    "onnxscript": "train",
    "pycocotools": "train",
    "safetensors": "train",
    "timm": "train",
    "torch": "train",
    "torchvision": "train",
}

_INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)
_TOGETHER = 1.0
"""Seconds within which a second signal is taken for the first."""
_SOON = 0.05
"""Seconds after which a signal that came at a bad moment is given again."""


class _Terminated(BaseException):
    """SIGTERM came."""


class _Interrupter:
    """The handler of SIGINT and SIGTERM: raises, once for signals that come together.

    A terminal and a supervisor, or an impatient person, send two; the second must not tear down what the first tidies up.
    """

    def __init__(self) -> None:
        self._last = -math.inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _importing(frame):
            # torch swallows what is raised while it imports numpy, and goes on with half of it.
            again = threading.Timer(_SOON, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        before, self._last = self._last, time.monotonic()
        if self._last - before > _TOGETHER:
            raise KeyboardInterrupt if number == signal.SIGINT else _Terminated


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


class _Commands(click.Group):
    """Turns what the commands raise into one paragraph and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        interrupter = _Interrupter()
        heard = [
            number for number in _INTERRUPTIONS if signal.getsignal(number) is not signal.SIG_IGN
        ]  # as under nohup
        afterwards = {number: signal.signal(number, interrupter) for number in heard}
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except (KeyboardInterrupt, _Terminated) as error:
            afterwards = dict.fromkeys(heard, signal.SIG_IGN)  # it ends already
            code, message = _interruption(error, ctx)
        except Exception as error:
            if ctx.params["debug"]:
                traceback.print_exc()
            code, message = _explanation(error)
        finally:
            for number, handler in afterwards.items():
                signal.signal(number, handler)
        click.echo(f"frs-pipeline: {printable(message)}", err=True)
        raise click.exceptions.Exit(code)


def _interruption(error: BaseException, ctx: click.Context) -> tuple[int, str]:
    code = 128 + (signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT)
    if ctx.invoked_subcommand == "device":
        return code, "interrupted; the same command continues"
    if ctx.invoked_subcommand != "run":
        return code, "interrupted"
    return code, "interrupted; the same command continues (without --force for a stage that was finished already)"


def _explanation(error: Exception) -> tuple[int, str]:
    """The exit code and the paragraph for an error, which is the user's, the machine's, or ours."""
    cause = error.__cause__ if isinstance(error, StageFailed) else error
    where = f"stage {error.stage}: " if isinstance(error, StageFailed) else ""
    if isinstance(cause, (PipelineError, FrsError)):
        return getattr(error, "exit_code", 1), str(error)
    if isinstance(cause, OSError) and cause.errno in _MACHINE:
        at = f": {cause.filename}" if cause.filename else ""
        return 1, f"{where}{cause.strerror}{at}; {_MACHINE[cause.errno]} and give the same command again, it continues"
    if isinstance(cause, ModuleNotFoundError) and cause.name in _EXTRAS:
        extra = f"pip install '.[{_EXTRAS[cause.name]}]' in the project's folder brings it"
        return 1, f"{where}{cause.name} is not installed; {extra}; then give the same command again"
    text = f"{type(cause).__name__}: {cause}".rstrip(": ")
    return 1, f"{where}{text}. This is a bug; --debug shows where"


def _config_argument(command: Command) -> Command:
    overrides = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key, e.g. student.train.epochs=12; may be repeated.",
    )
    path = click.argument("config", type=click.Path(path_type=Path))
    return path(overrides(command))


def _what_to_run(command: Command) -> Command:
    force = click.option("--force", multiple=True, metavar="STAGE", help="Do this stage again; may be repeated.")
    until = click.option("--until", metavar="STAGE", help="Stop after this stage.")
    return _config_argument(until(force(runs_dir_option(command))))


def _load(path: Path, overrides: tuple[str, ...]) -> tuple[Config, tuple[Stage, ...]]:
    import stages
    from pipeline.loading import load_config

    config = load_config(path, overrides)
    return config, stages.graph(config)


@click.group(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="frs-pipeline", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
def main(debug: bool) -> None:
    """Distil a heavy object detector into one that runs on an edge device, and prove what was won and lost."""


@main.command()
@click.option("--coco", required=True, type=click.Path(path_type=Path), help="Annotations of your images, COCO's JSON.")
@click.option(
    "--images", required=True, type=click.Path(path_type=Path), help="Folder that its file names are relative to."
)
@click.option(
    "--val-coco", type=click.Path(path_type=Path), help="Annotations of validation images; else some are set aside."
)
@click.option("--val-images", type=click.Path(path_type=Path), help="Their folder, where it is not that of --images.")
@click.option("--out", type=click.Path(path_type=Path), help="The file to write; by default NAME.yaml.")
@click.option("--name", help='Name of the run; by default that of --out, or "mine".')
def init(
    coco: Path, images: Path, val_coco: Path | None, val_images: Path | None, out: Path | None, name: str | None
) -> None:
    """Write a commented configuration for your data set, with sizes, anchors and batch chosen from it."""
    from stages.init import run_init

    if val_images and not val_coco:
        raise click.UsageError("--val-images needs --val-coco, the annotations of these images.")
    val = (val_coco, val_images or images) if val_coco else None
    with open_console() as console:
        for line in run_init(coco, images, val=val, out=out, name=name):
            console.print(line)


@main.command(epilog=_EPILOG)
@_what_to_run
@click.option(
    "--locked", is_flag=True, help="Only if the packages installed are those of the lock file, in its versions."
)
def run(
    config: Path, overrides: tuple[str, ...], until: str | None, force: tuple[str, ...], runs_dir: Path, locked: bool
) -> None:
    """Bring the run of CONFIG up to date.

    What is finished already, by this run or another under the same folder, is reused. Results: RUNS_DIR/NAME/.
    """
    from pipeline import runner
    from pipeline.environment import check_locked, lock_file
    from pipeline.plan import select

    settings, graph = _load(config, overrides)
    if locked:
        check_locked(lock_file())
    reported = any(stage.name == "report" for stage in select(graph, until, force))
    options = [*(["--locked"] if locked else []), *(part for key in overrides for part in ("--set", key))]
    command = shlex.join(["frs-pipeline", "run", str(config), *options, "--runs-dir", str(runs_dir)])
    with open_console() as console:
        try:
            runner.run(settings, graph, runs_dir, until=until, force=force, console=console, command=command)
        except GateFailed:
            if reported:
                _show_report([runs_dir / settings.name], console)
            raise
        if reported:
            _show_report([runs_dir / settings.name], console)


@main.command()
@_what_to_run
def plan(config: Path, overrides: tuple[str, ...], until: str | None, force: tuple[str, ...], runs_dir: Path) -> None:
    """Show what `run` would do with CONFIG, and why. Runs nothing."""
    from pipeline.plan import plan as make_plan

    settings, graph = _load(config, overrides)
    steps = make_plan(settings, graph, runs_dir, until=until, force=force)
    width = max(len(step.stage.name) for step in steps)
    with open_console() as console:
        for step in steps:
            console.print(f"{step.stage.name:{width}}  {step.action:7}  {'; '.join(step.reasons)}".rstrip())


@main.command()
@_config_argument
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("check"),
    show_default=True,
    help="Folder for a picture of the worst image, if boxes are at fault, and for what is too much to show.",
)
@click.option(
    "--preflight", is_flag=True, help="Also take the first steps of each training: the stages data and preflight run."
)
@runs_dir_option
def check(config: Path, overrides: tuple[str, ...], out: Path, preflight: bool, runs_dir: Path) -> None:
    """Check CONFIG, and the data, weights and environment that it needs. Trains nothing."""
    from pipeline import runner
    from stages.check import run_check

    settings, graph = _load(config, overrides)
    verdicts = []
    with open_console() as console, console.working("check"):
        for verdict, what, found in run_check(settings, out, console):
            verdicts.append(verdict)
            console.print(f"{verdict.value:7}  {what}: " + found.replace("\n", "\n" + 11 * " "))
    faults = sum(not verdict for verdict in verdicts)
    if faults:
        raise PipelineError(f"{config}: {faults} of {len(verdicts)} checks found a fault; they are marked FAULT above.")
    if preflight:
        command = shlex.join(["frs-pipeline", "check", str(config), "--preflight"])
        with open_console() as console:
            stage = "preflight"
            runner.run(settings, graph, runs_dir, until=stage, force=(stage,), console=console, command=command)


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@runs_dir_option
def report(runs: tuple[str, ...], runs_dir: Path) -> None:
    """Print the table of a finished RUN, or compare several.

    A run is given by its name or its folder.
    """
    folders = [run_folder(run, runs_dir) for run in runs]
    with open_console() as console:
        _show_report(folders, console)


@main.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("predictions"),
    show_default=True,
    help="Folder for the images with boxes drawn; drawings of the same name in it are replaced.",
)
@click.option(
    "--score", type=click.FloatRange(0, 1), default=0.3, show_default=True, help="Leave out boxes below this."
)
def predict(artifact: Path, images: tuple[Path, ...], out: Path, score: float) -> None:
    """Detect objects in images with an exported ARTIFACT, an ONNX file or a TensorRT plan: prints JSON, draws the boxes.

    IMAGE may be a folder of images too.
    """
    from stages.predict import run_predict

    answers = []
    try:
        for answer in run_predict(artifact, images, out, score):
            answers.append(answer)
    finally:
        if answers:  # those before the one that failed too
            text = json.dumps(answers, indent=2, ensure_ascii=False)
            click.echo(
                text.encode(errors="backslashreplace").decode()
            )  # a file name need not be UTF-8; JSON reads this
    errors = [answer["error"] for answer in answers if "error" in answer]
    if errors:
        raise PipelineError("\n  ".join([f"{len(errors)} of {len(answers)} images cannot be read", *errors]))


@main.command()
@runs_dir_option
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
def gc(runs_dir: Path, dry_run: bool) -> None:
    """Delete from the store what no run uses any more."""
    from pipeline.gc import collect

    collected = collect(runs_dir, dry_run=dry_run)
    with open_console() as console:
        for path, size in collected.deleted.items():
            console.print(f"{size:>14,}  {path}")
        for path in collected.busy:
            console.print(f"{'in use':>14}  {path}")
        verb = "would be deleted" if dry_run else "deleted"
        console.print(f"{collected.bytes:,} bytes in {len(collected.deleted)} folders {verb}")


def _show_report(folders: Sequence[Path], console: Console) -> None:
    from stages.report import show

    console.show(show(folders))
    if len(folders) == 1:
        show_devices(folders[0], console)


main.add_command(bundle)
main.add_command(device)

if __name__ == "__main__":
    main()
