"""`frs-pipeline device run`: a bundle on the device that it is for, without torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from frs.errors import BundleError, FrsError, RuntimeMissing
from pipeline import __version__
from pipeline.deployment import EngineConfig, GatesConfig, ProfileConfig
from pipeline.errors import GateFailed
from pipeline.files import to_json_text, write_atomic
from pipeline.stage import Progress
from stages.device.work import RESULT, Work, opened
from stages.report.gates import failures, worst_images

if TYPE_CHECKING:
    from frs.edge.bundle import Bundle

PAGE = "device.html"
PACKAGES = (
    "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-bindings", "pycocotools", "numpy", "pillow",
)  # fmt: skip
_NEEDED = ("jinja2", "pycocotools")


class Settings(NamedTuple):
    """The sections of the run's configuration that a device goes by."""

    engine: EngineConfig
    profile: ProfileConfig
    gates: GatesConfig


def run_device(archive: Path, results: Path, progress: Progress) -> dict[str, Any]:
    """Measure, write `results/device.json` and `device.html`, and return the former's content.

    Every finished step is kept until all are: a second call goes on. Raises RuntimeMissing where nothing could run,
    BundleError, Busy, ConfigError for the results of another bundle, and FrsError where nothing could be measured, which
    the report then says too.
    """
    runtimes = _runtimes()
    with opened(archive, results) as work:
        document = _measured(work, runtimes, progress)
    if not document["profiles"] and not any(row["runtime"] != "torch" for row in document["accuracy"]):
        raise FrsError(f"nothing could be measured; {results / PAGE} has the reasons: {'; '.join(document['notes'])}")
    return document


def conclude(document: dict[str, Any], results: Path) -> None:
    """Raises GateFailed where a limit was not kept."""
    failed = failures(document["gates"], worst_images(document))
    if failed:
        raise GateFailed(
            f"{document['name']}: {len(failed)} gate{'s' if len(failed) > 1 else ''} failed: {'; '.join(failed)}. All else was "
            f"done; see {results / PAGE}."
        )


def _runtimes() -> dict[str, bool]:
    """Which are there. Raises RuntimeMissing where none is, or what every device needs is not."""
    lacking = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        raise RuntimeMissing(
            f"{' and '.join(lacking)} not installed; pip install '.[device]' in the project's folder brings what is missing"
        )
    there = {name: importlib.util.find_spec(name) is not None for name in ("onnxruntime", "tensorrt", "tensorrt_rtx")}
    if not any(there.values()):
        raise RuntimeMissing(
            "neither TensorRT nor ONNX Runtime is here, so nothing can run; pip install onnxruntime, or, on a Jetson, make the "
            "virtual environment with --system-site-packages, so that JetPack's TensorRT is seen"
        )
    return there


def _measured(work: Work, runtimes: dict[str, bool], progress: Progress) -> dict[str, Any]:
    from frs.edge.machine import describe_machine, package_versions
    from stages.device.document import device_document
    from stages.device.measure import Measurement, images_of
    from stages.device.page import device_page
    from stages.device.reference import read_reference

    about, settings = work.bundle.about, _settings(work.bundle)
    environment = {
        "machine": describe_machine(),
        "packages": {"frs-pipeline": __version__, **package_versions(PACKAGES)},
    }
    progress.log(f"{about.run}, {len(work.bundle.of_kind('image'))} images, by {about.producer}")
    reference = read_reference(work.bundle)
    measurement = Measurement(work, environment, progress)
    measurement.build_engines(settings.engine)
    if not runtimes["onnxruntime"]:
        measurement.note("ONNX Runtime is not installed here: the ONNX files were not scored or timed.")
    measurement.score(runtimes)
    measurement.profile(settings.profile, images_of(work.bundle))
    document = device_document(work, reference, measurement.found, settings.gates, environment)
    write_atomic(work.results / RESULT, to_json_text(document))
    page = device_page(document, work, measurement.found)
    write_atomic(work.results / PAGE, page.encode(errors="backslashreplace").decode())
    work.forget("profile")  # whoever asks again wants the times of today, with clocks locked perhaps
    return document


def _settings(bundle: Bundle) -> Settings:
    from pydantic import ValidationError

    given = bundle.about.settings
    try:
        return Settings(
            EngineConfig.model_validate(given["engine"]),
            ProfileConfig.model_validate(given["profile"]),
            GatesConfig.model_validate(given["gates"]),
        )
    except (KeyError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise BundleError(
            f"the bundle was made by {bundle.about.producer} with settings that {__version__} does not know ({first}); install "
            "the same version on both machines, or make the bundle again"
        ) from None
