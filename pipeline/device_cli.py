"""The commands that take a run to a device: `bundle`, and the group `device`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.console import Console, open_console
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
def device_run(bundle: Path, out: Path) -> None:
    """Build the engines of BUNDLE here, score and time every file, and write a report.

    Needs no torch: TensorRT, ONNX Runtime or both, and the extra `device`. What is not there is left out, and the report
    says so.
    """
    from stages.device import run_device

    with open_console() as console, console.working("device"):
        run_device(bundle, out, console)
