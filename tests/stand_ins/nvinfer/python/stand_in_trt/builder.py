"""Builder, network, parser, and what configures them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from stand_in_trt.enums import BuilderFlag, ComputeCapability, LayerType
from stand_in_trt.partition import is_plugin, space_of
from stand_in_trt.plan import Refused, make_plan
from stand_in_trt.runtime import IPluginRegistry, Logger

NOT_FOUND = "Plugin not found, are the plugin name, version, and namespace correct?"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class ILayer:
    """A node of the graph."""

    name: str
    type: LayerType


class INetworkDefinition:
    """The graph that was parsed."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self._model: onnx.ModelProto | None = None
        self._layers: list[ILayer] = []

    def _fill(self, model: onnx.ModelProto) -> None:
        """With a graph that was found good."""
        self._model = model
        self._layers = [
            ILayer(x.name, LayerType.PLUGIN_V3 if is_plugin(x) else LayerType.ELEMENTWISE)
            for x in model.graph.node
        ]

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]


class OnnxParser:
    """Takes a graph whose plugins the network's builder has."""

    def __init__(self, network: INetworkDefinition, logger: Logger) -> None:
        self._network, self.logger = network, logger
        self._errors: list[str] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> str:
        return self._errors[index]

    def parse(self, model: bytes, path: str | None = None) -> bool:
        parsed = onnx.load_model_from_string(model)
        try:
            onnx.checker.check_model(parsed)
        except onnx.checker.ValidationError as error:
            self._errors.append(str(error))
            return False
        creators = self._network.builder.get_plugin_registry().all_creators
        known = {(x.name, x.plugin_version, x.plugin_namespace) for x in creators}
        for node in parsed.graph.node:
            if is_plugin(node) and (node.op_type, "1", space_of(node)) not in known:
                self._errors.append(f"{node.op_type}: {NOT_FOUND}")
            elif is_plugin(node) and not all(node.input):
                self._errors.append(f"{node.op_type}: an input of a plugin is empty")
            elif is_plugin(node) and not all(node.output):
                self._errors.append(f"{node.op_type}: an output of a plugin has no name")
        if not self._errors:
            self._network._fill(parsed)
        return not self._errors


class IOptimizationProfile:
    """Ranges of open inputs."""

    def __init__(self) -> None:
        self._shapes: dict[str, tuple[Shape, Shape, Shape]] = {}

    def set_shape(
        self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]
    ) -> None:
        corners = (tuple(min), tuple(opt), tuple(max))
        if not all(a <= b <= c for a, b, c in zip(*corners, strict=True)):
            raise ValueError(f"{input}: not min <= opt <= max: {corners}")
        self._shapes[input] = corners

    def get_shape(self, input: str) -> list[Shape]:
        return list(self._shapes[input])


class IBuilderConfig:
    """What is built."""

    def __init__(self) -> None:
        self.builder_optimization_level = 3
        self.plugins_to_serialize: list[str] = []
        self._profiles: list[IOptimizationProfile] = []
        self._flags = {BuilderFlag.TF32}

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def get_flag(self, flag: BuilderFlag) -> bool:
        return flag in self._flags


class RtxBuilderConfig(IBuilderConfig):
    """TensorRT-RTX's, with what that one has alone."""

    def __init__(self) -> None:
        super().__init__()
        self.num_compute_capabilities = 0
        self._capabilities: dict[int, ComputeCapability] = {}

    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> bool:
        self._capabilities[index] = compute_capability
        return index < self.num_compute_capabilities

    def get_compute_capability(self, index: int) -> ComputeCapability:
        return self._capabilities[index]


class Builder:
    """Makes plans; it has a plugin registry of its own."""

    _core: Any  # set for each flavour
    _of: tuple[str, str]

    def __init__(self, logger: Logger) -> None:
        self.logger = logger
        self._handle = self._core.standInBuilder(logger._pointer(self._core))

    def __del__(self) -> None:
        self._core.standInDeleteBuilder(self._handle)

    def get_plugin_registry(self) -> IPluginRegistry:
        handle = self._core.standInBuilderRegistry(self._handle)
        return IPluginRegistry(self._core, handle, self)

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(self)

    def create_builder_config(self) -> IBuilderConfig:
        return RtxBuilderConfig() if self._of[0] == "tensorrt_rtx" else IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> bytes | None:
        assert network._model is not None
        try:
            return make_plan(
                network._model, [profile._shapes for profile in config._profiles],
                self.get_plugin_registry(), self._core, self._of,
            )  # fmt: skip
        except Refused as error:
            print(f"[TRT] [E] {error}", file=sys.stderr)
            return None
