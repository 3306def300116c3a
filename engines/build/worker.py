"""One engine built in a process of its own: `python -m glm_trt.engines.build.worker`.

A JSON request on stdin, a JSON result on stdout, TensorRT's log on stderr. The process ends with
a status other than 0, or is killed, where the build fails; the plan is written only if it is whole.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from glm_trt.engines.build.flavours import Flavour, load_flavour
from glm_trt.engines.build.graph import prepare_graph
from glm_trt.model.errors import GlmTrtError
from glm_trt.model.files import write_atomically

Range = Sequence[int]  # min, opt, max


class Request(TypedDict):
    """What to build. `profiles`: profile name → axis → [min, opt, max].

    `plugins`: the plugin library, None to expand the operators. `embed`: put it into the plan.
    """

    backend: str
    target: str
    graph: str
    plan: str
    profiles: Mapping[str, Mapping[str, Range]]
    options: dict[str, Any]
    plugins: str | None
    embed: bool


class Result(TypedDict):
    """What was built. `layers` are those of the parsed network, before TensorRT fuses them."""

    seconds: float
    peak_memory_bytes: int
    layers: int
    plugins: list[str]


def main() -> int:
    """Serve one request; 1 if TensorRT refused the graph."""
    # TensorRT and its compilers may print: stdout is kept for the result alone.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request: Request = json.load(sys.stdin)
    started = time.monotonic()
    try:
        built = build(load_flavour(request["backend"]), request)
    except GlmTrtError as error:
        print(error, file=sys.stderr)
        return 1
    if built is None:
        return 1
    plan, layers, plugins = built
    seconds = time.monotonic() - started
    write_atomically(Path(request["plan"]), plan)
    result: Result = {
        "seconds": round(seconds, 3), "peak_memory_bytes": _peak_memory(), "layers": layers,
        "plugins": sorted(set(plugins)),
    }  # fmt: skip
    json.dump(result, answer)
    answer.close()
    return 0


def build(flavour: Flavour, request: Request) -> tuple[bytes, int, tuple[str, ...]] | None:
    """The plan, the number of layers and the op types that plugins run.

    None, with the reason in the log, if the graph was refused.
    """
    trt, profiles, library = flavour.trt, request["profiles"], request["plugins"]
    builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
    if library is not None and builder.get_plugin_registry().load_library(library) is None:
        print(f"{library}: cannot be loaded as a plugin library", file=sys.stderr)
        return None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    graph = prepare_graph(Path(request["graph"]), _fixed_sizes(profiles), library is not None)
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse(graph.model):
        for i in range(parser.num_errors):
            print(parser.get_error(i), file=sys.stderr)
        return None
    layers = [network.get_layer(i).type for i in range(network.num_layers)]
    if (found := layers.count(trt.LayerType.PLUGIN_V3)) != len(graph.plugins):
        print(f"plugin layers: expected {len(graph.plugins)}, found {found}", file=sys.stderr)
        return None
    config = builder.create_builder_config()
    if library is not None and request["embed"]:
        config.plugins_to_serialize = [library]
    flavour.configure(config, request["target"])
    _apply_options(trt, config, request["options"])
    for ranges in profiles.values():
        profile = builder.create_optimization_profile()
        for name, shape in graph.open_inputs.items():
            corners = [
                [ranges[axis][i] if isinstance(axis, str) else axis for axis in shape]
                for i in range(3)
            ]
            profile.set_shape(name, *corners)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return None if plan is None else (bytes(plan), network.num_layers, graph.plugins)


def _fixed_sizes(profiles: Mapping[str, Mapping[str, Range]]) -> dict[str, int]:
    """The axes that have one size in every profile."""
    ranges: dict[str, set[int]] = {}
    for profile in profiles.values():
        for axis, sizes in profile.items():
            ranges.setdefault(axis, set()).update(sizes)
    return {axis: sizes.pop() for axis, sizes in ranges.items() if len(sizes) == 1}


def _apply_options(trt: Any, config: Any, options: dict[str, Any]) -> None:
    config.builder_optimization_level = options["optimization_level"]
    if not options["tf32"]:
        config.clear_flag(trt.BuilderFlag.TF32)


def _peak_memory() -> int:
    # Not getrusage's ru_maxrss: it survives exec, so it would count the parent's memory too.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    sys.exit(main())
