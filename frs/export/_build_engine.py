"""The process that builds one plan: `python -m frs.export._build_engine request.json`.

One code path for TensorRT 10 and 11 and for TensorRT-RTX: the module is asked for what it has, never for its version.
Precision is the ONNX file's own, so the network is strongly typed wherever that can still be chosen.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from frs.edge.machine import Gpu, find_gpu

KEPT_LINES = 50
LINE_LENGTH = 500


def main(request_path: Path) -> None:
    request = json.loads(request_path.read_text(encoding="utf-8"))
    gpu = find_gpu()
    trt = choose(gpu)
    if trt is None:
        result = answer(
            None, gpu, None, "failed", "neither tensorrt (with a GPU) nor tensorrt_rtx can be imported here"
        )
    else:
        result = build(trt, request, gpu)
    Path(request["result"]).write_text(json.dumps(result), encoding="utf-8")


def choose(gpu: Gpu | None) -> Any:
    """TensorRT where it is and has a GPU to build on, else TensorRT-RTX, else None."""
    for name in ("tensorrt", "tensorrt_rtx") if gpu else ("tensorrt_rtx",):
        try:
            return importlib.import_module(name)
        except (ImportError, OSError):  # OSError: the bindings are there, a library that they load is not
            continue
    return None


def build(trt: Any, request: dict[str, Any], gpu: Gpu | None) -> dict[str, Any]:
    """The plan at request["plan"], and the answer for the sidecar."""
    log = make_logger(trt)
    target = resolve_target(trt, request["target"], gpu)
    if target is None:
        return answer(trt, gpu, request["target"], "failed", no_target(trt, request["target"], gpu))

    def failed(message: str, profile: Any = None) -> dict[str, Any]:
        said = log.errors[-1] if log.errors else "and the library did not say why"
        return answer(trt, gpu, target, "failed", f"{message}: {said}", profile, log.lines)

    builder = trt.Builder(log)
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(request["onnx"]):
        log.errors += [parser.get_error(i).desc() for i in range(parser.num_errors)]
        return failed("the parser refused the graph")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_mb"] << 20)
    if hasattr(config, "num_compute_capabilities"):
        local = gpu is not None and request["target"] == "local"
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.CURRENT if local else capability(trt, target), 0)
    profile = add_profile(builder, network, config, request["batches"])
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return failed("the graph was not built", profile)
    data = bytes(plan)
    Path(request["plan"]).write_bytes(data)
    proven = "planned"
    if gpu is not None and gpu.sm == target:
        if trt.Runtime(log).deserialize_cuda_engine(data) is None:
            return failed(f"{gpu.name} does not take the plan that was built for it", profile)
        proven = "deserialised"
    return answer(trt, gpu, target, proven, None, profile, log.lines)


def make_logger(trt: Any) -> Any:
    """Keeps the last warnings and errors. INFO is dropped: there the library prints bytes of the weights."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message[:LINE_LENGTH])
            elif severity != trt.ILogger.WARNING:
                return
            self.lines = [*self.lines, message[:LINE_LENGTH]][-KEPT_LINES:]

    return Logger()


def network_flags(trt: Any) -> int:
    """STRONGLY_TYPED where it is a choice; where the flag is gone, so is the choice."""
    flags = getattr(trt, "NetworkDefinitionCreationFlag", None)
    strongly_typed = getattr(flags, "STRONGLY_TYPED", None)
    return 0 if strongly_typed is None else 1 << int(strongly_typed)


def capability(trt: Any, target: str) -> Any:
    return getattr(trt.ComputeCapability, target.replace("sm_", "SM"), None)


def resolve_target(trt: Any, target: str, gpu: Gpu | None) -> str | None:
    """The compute capability that the plan will be for: the GPU's own, unless the library compiles ahead of time."""
    if target == "local" or not hasattr(trt, "ComputeCapability"):
        return gpu.sm if gpu else None
    return target if capability(trt, target) is not None else None


def no_target(trt: Any, target: str, gpu: Gpu | None) -> str:
    if gpu is None and (target == "local" or not hasattr(trt, "ComputeCapability")):
        return "there is no GPU here to build for; name a target such as sm_86"
    known = sorted(name.lower().replace("sm", "sm_") for name in dir(trt.ComputeCapability) if name.startswith("SM"))
    return (
        f"{trt.__name__} {trt.__version__} cannot build for {target}, it knows {', '.join(known)}; a Jetson's engine is "
        "built on the Jetson, with its own TensorRT"
    )


def add_profile(builder: Any, network: Any, config: Any, batches: list[int]) -> dict[str, list[list[int]]] | None:
    """Least, usual and greatest shape of every input whose batch is open; None where all are fixed."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    shapes = {
        entry.name: [[batch, *list(entry.shape)[1:]] for batch in batches] for entry in inputs if entry.shape[0] == -1
    }
    if not shapes:
        return None
    profile = builder.create_optimization_profile()
    for name, (least, usual, greatest) in shapes.items():
        profile.set_shape(name, least, usual, greatest)
    config.add_optimization_profile(profile)
    return shapes


def answer(
    trt: Any,
    gpu: Gpu | None,
    target: str | None,
    proven: str,
    message: str | None,
    profile: Any = None,
    log: list[str] | None = None,
) -> dict[str, Any]:
    return {
        "builder": trt and trt.__name__,
        "version": trt and trt.__version__,
        "target": target,
        "gpu": gpu and gpu.name,
        "driver": gpu and gpu.driver,
        "profile": profile,
        "proven": proven,
        "message": message,
        "log": log or [],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
