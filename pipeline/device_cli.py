"""The commands that take a run to a device: `bundle`, and the group `device`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from frs.errors import RemoteError
from pipeline.console import Console, open_console
from pipeline.errors import GateFailed
from pipeline.options import run_folder, runs_dir_option


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file to write, a .tar."
)
@runs_dir_option
def bundle(run: str, out: Path, runs_dir: Path) -> None:
    """Pack what a device needs of a finished RUN into one file.

    RUN is a name or a folder, finished at least to `validate`. In the file: the ONNX files of teacher and student, the first
    `bundle.images` validation images with their annotations, torch's detections on them, and a manifest with the hash of
    each. The same run gives the same bytes. It contains your images: give it to nobody who may not have them.
    """
    with open_console() as console:
        content = _write_bundle(run_folder(run, runs_dir), out, console)
        console.print(f"{out}: {content}.")
        console.print("It contains these images as they are; give it to nobody who may not have them.")
        console.print(f"On the device: frs-pipeline device run {out.name} -o results")


def _write_bundle(folder: Path, out: Path, console: Console) -> str:
    """The bundle of the run in `folder`; what is in it, in words."""
    import stages
    from pipeline.finished import finished_run
    from stages.bundle import inputs, write_run

    run = finished_run(folder, stages.graph, until="validate")
    with console.working("bundle"):
        wanted = inputs(run.config)
        paths = {label: run.verified(source) for label, source in wanted.items()}
        hashes = {label: run.hashes[source] for label, source in wanted.items()}
        return write_run(run.config, paths, hashes, run.outputs["data/images"], out, console.update)


@click.group()
def device() -> None:
    """Measure a run's files on the device that they are for."""


@device.command("run")
@click.argument("bundle", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for device.json, device.html and the engines; a second call goes on where the first one ended.",
)
@click.option(
    "--attended",
    is_flag=True,
    help="End when standard input ends, or is silent for a minute: whoever started this over a network is gone.",
)
def device_run(bundle: Path, out: Path, attended: bool) -> None:
    """Build the engines of BUNDLE here, score and time every file, and write a report.

    Needs no torch: TensorRT, ONNX Runtime or both, and the extra `device`. What is not there is left out, and the report
    says so.
    """
    from frs.interrupts import end_unattended
    from stages.device.run import conclude, run_device
    from stages.device.table import device_table

    if attended:
        end_unattended()
    with open_console() as console:
        with console.working("device"):
            document = run_device(bundle, out, console)
        if not attended:  # `device push` shows the devices side by side
            console.show(device_table(document, out))
    conclude(document, out)


@device.command("info")
def device_info() -> None:
    """Print as JSON what this machine is and which of the libraries for `device run` it has."""
    from stages.device.info import device_info as described

    click.echo(json.dumps(described(), indent=1))


@device.command("push")
@click.argument("run", metavar="RUN")
@click.option("--host", required=True, help="[user@]machine, or a name out of ~/.ssh/config.")
@click.option("--port", type=click.IntRange(1, 65535), help="Of its ssh server, where it is not 22.")
@click.option(
    "--identity",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Private key to log in with, where it is not one that ssh takes by itself.",
)
@click.option(
    "--command",
    default="frs-pipeline",
    show_default=True,
    help="frs-pipeline on the device, such as ~/venv/bin/frs-pipeline, in quotes.",
)
@runs_dir_option
def device_push(run: str, host: str, port: int | None, identity: Path | None, command: str, runs_dir: Path) -> None:
    """Measure a finished RUN on a device over ssh, and bring the results back into the run.

    Sends the bundle of RUN, does `device run` there and shows what it says, and puts its results into
    RUNS_DIR/NAME/devices/MACHINE/; `report` then shows the devices side by side. Interrupted, the same command continues. The
    system's ssh is used, with keys alone, and with what ~/.ssh/config says.
    """
    from frs.remote import Remote
    from stages.device.push import push

    try:
        remote = Remote(host, port=port, identity=identity)
    except RemoteError as error:
        raise click.BadParameter(str(error), param_hint="--host") from None
    folder = run_folder(run, runs_dir)
    with open_console() as console:
        failed = push(remote, folder, lambda archive: _write_bundle(folder, archive, console), command, console)
        console.print(f"{host}: its results are in {folder / 'devices' / remote.slug}")
        if (folder / "report.json").is_file():
            show_devices(folder, console)
    if failed:
        count = f"{len(failed)} gate{'s' if len(failed) > 1 else ''}"
        raise GateFailed(f"{host}: {count} failed on it: {', '.join(failed)}; its results are whole.")


def show_devices(folder: Path, console: Console) -> None:
    """The devices of a run side by side, where any has been measured on."""
    from stages.device.compare import show_devices

    if shown := show_devices(folder):
        console.show(shown)
