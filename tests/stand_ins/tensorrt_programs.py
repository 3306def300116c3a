"""Programs that keep TensorRT's rules, and that break one each, on the stand-ins.

    python tensorrt_programs.py tensorrt|tensorrt_rtx

What each was told is printed as JSON: name → violations. What is refused a program checks itself.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from glm_trt.engines.python.gpu import Gpu

HIDDEN, CAPACITY = 4, 8
STAND_IN = ctypes.CDLL("libcuda.so.1")
trt: Any = importlib.import_module(sys.argv[1])
IS_RTX = sys.argv[1] == "tensorrt_rtx"


def model() -> bytes:
    """y = 2 x over open tokens, and a cache of static capacity that is updated in place."""
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "x"], ["y"]),
            helper.make_node("TensorScatter", ["cache", "update", "at"], ["cache_out"], axis=-2),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", floats, [1, "sequence", HIDDEN]),
            helper.make_tensor_value_info("cache", floats, [1, 1, CAPACITY, HIDDEN]),
            helper.make_tensor_value_info("update", floats, [1, 1, 1, HIDDEN]),
            helper.make_tensor_value_info("at", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("y", floats, [1, "sequence", HIDDEN]),
            helper.make_tensor_value_info("cache_out", floats, [1, 1, CAPACITY, HIDDEN]),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    made.ir_version = 11
    text: bytes = made.SerializeToString()
    return text


def built() -> bytes:
    """The plan, with a profile of one token and one of 2 to 8."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network()
    assert trt.OnnxParser(network, logger).parse(model())
    config = builder.create_builder_config()
    for least, most in ((1, 1), (2, 8)):
        profile = builder.create_optimization_profile()
        profile.set_shape("x", (1, least, HIDDEN), (1, most, HIDDEN), (1, most, HIDDEN))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    return bytes(plan)


class Opened:
    """A context on a profile with all that it needs."""

    def __init__(
        self, gpu: Gpu, plan: bytes, profile: int = 1, eager: bool = True, without: str = ""
    ) -> None:
        self.gpu = gpu
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if IS_RTX and eager:
            config = self.engine.create_runtime_config()
            config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            config.set_execution_context_allocation_strategy(strategy)
            strategy = config
        self.context = self.engine.create_execution_context(strategy)
        self.context.set_optimization_profile_async(profile, gpu.stream)
        self.scratch_bytes = self.engine.get_device_memory_size_for_profile_v2(profile)
        self.memory = {
            name: gpu.allocate(256 * size)
            for name, size in (("x", 1), ("y", 1), ("cache", 1), ("update", 1), ("at", 1))
        }
        self.scratch = gpu.allocate(self.scratch_bytes + 1)
        self.context.set_device_memory(self.scratch, self.scratch_bytes)
        for name, address in (*self.memory.items(), ("cache_out", self.memory["cache"])):
            if name != without:
                assert self.context.set_tensor_address(name, address)
        self.tokens = 1 if profile == 0 else 3
        assert self.context.set_input_shape("x", (1, self.tokens, HIDDEN))
        self.x = np.arange(self.tokens * HIDDEN, dtype=np.float32)
        self.upload(x=self.x, cache=np.zeros(CAPACITY * HIDDEN, np.float32),
                    update=np.ones(HIDDEN, np.float32), at=np.array([5], np.int64))  # fmt: skip

    def upload(self, **arrays: Any) -> None:
        for name, array in arrays.items():
            self.gpu.upload(self.memory[name], array)

    def run(self) -> bool:
        done: bool = self.context.execute_async_v3(self.gpu.stream)
        return done

    def y(self) -> Any:
        found = np.empty(self.tokens * HIDDEN, np.float32)
        self.gpu.download(self.memory["y"], found)
        return found

    def end(self) -> None:
        """Context, engine and runtime go in this order, whatever else is held."""
        self.gpu.synchronize()
        del self.context, self.engine, self.runtime
        gc.collect()


def keeps(gpu: Gpu, plan: bytes) -> None:
    for profile in (0, 1):
        opened = Opened(gpu, plan, profile)
        assert opened.run()
        assert (opened.y() == 2 * opened.x).all()
        cache = np.empty((CAPACITY, HIDDEN), np.float32)
        gpu.download(opened.memory["cache"], cache)
        assert cache[5].tolist() == [1] * HIDDEN and cache.sum() == HIDDEN
        replay = gpu.record(lambda of=opened: _expect(of.run()))  # type: ignore[misc]
        assert replay is not None
        opened.upload(x=opened.x + 1)
        replay()
        assert (opened.y() == 2 * opened.x + 2).all()
        assert tuple(opened.context.get_tensor_shape("y")) == (1, opened.tokens, HIDDEN)
        replay.close()
        opened.end()


def in_threads(gpu: Gpu, plan: bytes) -> None:
    """One after another, none of which is there any more when the next comes."""
    results = []

    def work() -> None:
        with gpu.current():
            opened = Opened(gpu, plan)
            results.append(opened.run() and bool((opened.y() == 2 * opened.x).all()))
            opened.end()

    for _ in range(3):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert results == [True] * 3


def _expect(good: bool) -> None:
    assert good


def what_is_refused(gpu: Gpu, plan: bytes) -> None:
    """What TensorRT answers with an error."""
    opened = Opened(gpu, plan)
    context = opened.context
    assert not context.set_tensor_address("x", opened.memory["x"] + 16)
    assert not context.set_tensor_address("z", opened.memory["x"])
    assert not context.set_input_shape("x", (1, 1, HIDDEN))
    assert not context.set_input_shape("x", (1, 9, HIDDEN))
    assert not context.set_input_shape("x", (1, 3, HIDDEN + 1))
    assert not context.set_input_shape("y", (1, 3, HIDDEN))
    assert not context.set_optimization_profile_async(2, gpu.stream)
    assert opened.run()
    context.set_optimization_profile_async(1, gpu.stream)  # forgets the shapes
    assert not opened.run()
    runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
    other = plan.replace(b'"version": "', b'"version": "9')
    for bad in (plan[1:], b"", plan[:40], other[:24] + plan[24:32] + other[32:]):
        assert runtime.deserialize_cuda_engine(bad) is None
    del context
    opened.end()
    opened = Opened(gpu, plan, without="y")
    assert not opened.run()
    opened.end()


def no_memory(gpu: Gpu, plan: bytes) -> None:
    opened = Opened(gpu, plan)
    assert opened.context.set_tensor_address("y", 0)
    assert opened.run()
    gpu.synchronize()
    opened.end()


def aliased_undeclared(gpu: Gpu, plan: bytes) -> None:
    opened = Opened(gpu, plan)
    opened.context.set_tensor_address("y", opened.memory["x"])
    assert not opened.run()
    opened.context.set_tensor_address("y", opened.memory["y"])
    opened.context.set_tensor_address("cache_out", opened.scratch)
    assert not opened.run()
    opened.end()


def too_little_scratch(gpu: Gpu, plan: bytes) -> None:
    opened = Opened(gpu, plan)
    opened.context.set_device_memory(opened.scratch, opened.scratch_bytes - 1)
    assert not opened.run()
    opened.end()


def first_run_recorded(gpu: Gpu, plan: bytes) -> None:
    opened = Opened(gpu, plan)
    results = []
    assert gpu.record(lambda: results.append(opened.run())) is None
    assert results == [False]
    opened.end()


def recorded_before_specialised(gpu: Gpu, plan: bytes) -> None:
    opened = Opened(gpu, plan, eager=False)
    assert opened.run()
    replay = gpu.record(lambda: _expect(opened.run()))
    assert replay is not None
    replay.close()
    opened.end()


def context_gone_too_early(gpu: Gpu, plan: bytes) -> None:
    opened = Opened(gpu, plan)
    assert opened.run()
    del opened.context
    gc.collect()
    gpu.synchronize()
    del opened.engine, opened.runtime


def engine_before_context(gpu: Gpu, plan: bytes) -> None:
    opened = Opened(gpu, plan)
    core, engine, context = opened.engine._core, opened.engine, opened.context
    core.standInDeleteEngine(engine._handle)
    core.standInDeleteContext(context._handle)
    _forget(engine, context)


def runtime_before_engine(gpu: Gpu, plan: bytes) -> None:
    opened = Opened(gpu, plan)
    core, runtime = opened.engine._core, opened.runtime
    core.standInDeleteRuntime(runtime._handle)
    core.standInDeleteContext(opened.context._handle)
    core.standInDeleteEngine(opened.engine._handle)
    _forget(opened.context, opened.engine, runtime)


def _forget(*objects: Any) -> None:
    """They are destroyed already: nothing does it again."""
    for x in objects:
        x._core = _Nothing()


class _Nothing:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def violations() -> list[str]:
    """Rules that were broken since the last time."""
    text = ctypes.create_string_buffer(1 << 16)
    STAND_IN.standInViolations(text, ctypes.c_size_t(len(text)))
    return sorted({line.split(": ")[1] for line in text.value.decode().splitlines()})


def main() -> None:
    plan, found = built(), {}
    gpu = Gpu("this program")
    programs = (in_threads, keeps, what_is_refused, no_memory, aliased_undeclared,
                too_little_scratch, first_run_recorded, recorded_before_specialised,
                context_gone_too_early, engine_before_context, runtime_before_engine)  # fmt: skip
    for program in programs:
        with gpu.current():
            program(gpu, plan)
            gc.collect()
            found[program.__name__] = violations()
    with gpu.current():
        opened = Opened(gpu, plan)
    assert not opened.run()  # in a thread without a context
    found["no_context"] = violations()
    with gpu.current():
        opened.end()
    gpu.close()
    print(json.dumps(found))


if __name__ == "__main__":
    onnx.checker.check_model(onnx.load_model_from_string(model()))
    main()
