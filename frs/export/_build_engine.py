"""The process that builds one plan: `python -m frs.export._build_engine request.json`.

One code path for TensorRT 10 and 11 and for TensorRT-RTX: the module is asked for what it has, never for its version.
Precision is the ONNX file's own, so the network is strongly typed wherever that can still be chosen.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frs.edge.machine import Gpu, find_gpu
from frs.export import timing_cache
from frs.export.limited import KEPT_LINES, LINE_LENGTH
from frs.interrupts import end_with

AHEAD_OF_TIME = "sm_86"
"""What is built for where no target is named and there is no GPU."""


def main(request_path: Path) -> None:
    request = json.loads(request_path.read_text(encoding="utf-8"))
    end_with(request["parent"])
    gpu = find_gpu()
    trt, absent = choose(gpu)
    if trt is None:
        result = answer(None, gpu, None, None, absent)
    else:
        # Should the library take this process with it, the parent knows at least which one it was.
        write(request, answer(trt, gpu, None, "failed", None))
        result = build(trt, request, gpu)
    write(request, result)


def write(request: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """For the parent, whole."""
    target = Path(request["result"])
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(result), encoding="utf-8")
    partial.replace(target)


def choose(gpu: Gpu | None) -> tuple[Any, str | None]:
    """TensorRT where it is and has a GPU to build on, else TensorRT-RTX, else None and why."""
    reasons = [] if gpu else ["tensorrt builds on a GPU, and none is found here"]
    for name in ("tensorrt", "tensorrt_rtx") if gpu else ("tensorrt_rtx",):
        try:
            return importlib.import_module(name), None
        except (ImportError, OSError) as error:  # OSError: the bindings are there, a library that they load is not
            reasons.append(f"{name} cannot be imported ({(str(error).splitlines() or [''])[0][:200]})")
    return None, f"{', '.join(reasons)}; pip install '.[rtx]' brings TensorRT-RTX, JetPack brings TensorRT"


def build(trt: Any, request: Mapping[str, Any], gpu: Gpu | None) -> dict[str, Any]:
    """The plan at request["plan"], and the answer for the sidecar."""
    log = make_logger(trt)
    builder = trt.Builder(log)
    config = builder.create_builder_config()
    target = resolve_target(trt, config, request["target"], gpu)
    if target is None:
        return answer(trt, gpu, request["target"], "failed", no_target(trt, config, request["target"]))

    def failed(message: str, profile: Any = None) -> dict[str, Any]:
        said = log.errors[-1] if log.errors else "and the library did not say why"
        return answer(trt, gpu, target, "failed", f"{message}: {said}", profile, log.lines)

    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(request["onnx"]):
        for i in range(parser.num_errors):
            log.keep(parser.get_error(i).desc(), error=True)
        return failed("the parser refused the graph")
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_mb"] << 20)
    if hasattr(config, "num_compute_capabilities"):
        config.num_compute_capabilities = 1
        wanted = "CURRENT" if request["target"] is None and gpu else target.replace("sm_", "SM")
        if not config.set_compute_capability(getattr(trt.ComputeCapability, wanted), 0):
            return failed(f"{target} was refused")
    profile = add_profile(builder, network, config, request["batches"])
    timings = None
    if gpu is not None and request["timings"] is not None:
        timings = timing_cache.cache_path(Path(request["timings"]), trt, gpu)
        if not timing_cache.attach(trt, config, timings, log.keep):
            timings = None
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return failed("the graph was not built", profile)
    data = bytes(plan)
    built = Path(request["plan"])
    built.write_bytes(data)
    if timings is not None:
        built.with_name(timings.name).write_bytes(bytes(config.get_timing_cache().serialize()))
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
            error = severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)
            if error or severity == trt.ILogger.WARNING:
                self.keep(message, error=error)

        def keep(self, message: str, *, error: bool = False) -> None:
            line = message[:LINE_LENGTH]
            self.lines = [*self.lines, line][-KEPT_LINES:]
            if error:
                self.errors = [*self.errors, line][-KEPT_LINES:]
            print(line, file=sys.stderr, flush=True)  # all that is left, should the library crash or hang

    return Logger()


def network_flags(trt: Any) -> int:
    """STRONGLY_TYPED where it is a choice; where the flag is gone, so is the choice."""
    flags = getattr(trt, "NetworkDefinitionCreationFlag", None)
    strongly_typed = getattr(flags, "STRONGLY_TYPED", None)
    return 0 if strongly_typed is None else 1 << int(strongly_typed)


def resolve_target(trt: Any, config: Any, target: str | None, gpu: Gpu | None) -> str | None:
    """The compute capability that the plan will be for: the GPU's own, unless the library compiles ahead of time."""
    if not hasattr(config, "num_compute_capabilities"):
        return gpu.sm if gpu else None
    if target is None:
        return gpu.sm if gpu else AHEAD_OF_TIME
    return target if hasattr(trt.ComputeCapability, target.replace("sm_", "SM")) else None


def no_target(trt: Any, config: Any, target: str | None) -> str:
    if not hasattr(config, "num_compute_capabilities"):
        return f"{trt.__name__} {trt.__version__} builds on a GPU, and none is found here"
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
    proven: str | None,
    message: str | None,
    profile: Any = None,
    log: list[str] | None = None,
) -> dict[str, Any]:
    """What the sidecar tells of the build; proven None: there is nothing here that builds."""
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
