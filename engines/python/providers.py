"""onnxruntime's execution providers: what `--provider` names, and sessions that run on them."""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnx import TensorProto, helper

from glm_trt.engines.python.onnxruntime_module import CPU, ort
from glm_trt.model.errors import GlmTrtError, MissingCapabilityError
from glm_trt.model.requirements import installed

_HOST, _CUDA, _TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
# Name → onnxruntime's own names: the one that is wanted, and those for what it does not run.
_NAMES = {"cpu": (_HOST,), "cuda": (_CUDA, _HOST), "tensorrt": (_TENSORRT, _CUDA, _HOST)}
# Routers are in float32 whatever the dtype: 10 bits of their products would choose other experts.
_OPTIONS = {_CUDA: {"use_tf32": "0"}}
_LIBRARIES = {"cuda": "providers_cuda", "tensorrt": "providers_tensorrt"}
_EXTRAS = {"cuda": "gpu", "tensorrt": "gpu,tensorrt"}
PROVIDERS = tuple(_NAMES)
_SILENT, _DEFAULT = 4, 2  # severities of onnxruntime's log


class Provider:
    """One of `PROVIDERS`, started.

    Parameters
    ----------
    name : which.

    Raises
    ------
    GlmTrtError
        If there is none of that name.
    MissingCapabilityError
        If the installed onnxruntime lacks it, or cannot start it on this machine.
    """

    def __init__(self, name: str) -> None:
        if name not in _NAMES:
            raise GlmTrtError(f"provider {name!r}: expected one of {', '.join(PROVIDERS)}")
        self.name, self._wanted = name, list(_NAMES[name])
        if self.is_cpu:
            return
        available = ort.get_available_providers()
        if self._wanted[0] not in available:
            raise self._missing(f"has {', '.join(available)}, not {self._wanted[0]}")
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()  # those of the packages that onnxruntime-gpu's extras name
        try:
            self.session(_probe(), ort.SessionOptions())
        except MissingCapabilityError:
            raise
        except Exception as error:  # onnxruntime's own have no base but this
            raise self._missing(self._cannot(_first_line(error))) from None

    @property
    def is_cpu(self) -> bool:
        """Whether it is the CPU's, whose arrays are NumPy's."""
        return self.name == "cpu"

    @property
    def device(self) -> str:
        """onnxruntime's name of the memory in which arrays lie."""
        return "cpu" if self.is_cpu else "cuda"

    def session(self, graph: bytes, options: ort.SessionOptions) -> ort.InferenceSession:
        """A session on this provider, and on no other in its place.

        Raises
        ------
        MissingCapabilityError
            If onnxruntime goes on without the provider.
        Exception
            What onnxruntime raises about a graph that it refuses.
        """
        if self.is_cpu:
            return ort.InferenceSession(graph, options, providers=self._wanted)
        with _silent_log():
            session = ort.InferenceSession(
                graph, options, providers=self._wanted, enable_fallback=0,
                provider_options=[_OPTIONS.get(name, {}) for name in self._wanted],
            )  # fmt: skip
        found = session.get_providers()
        if self._wanted[0] not in found:
            raise self._missing(self._cannot(f"it goes on with {', '.join(found)} alone"))
        return session

    def _missing(self, found: str) -> MissingCapabilityError:
        # Both distributions at once overwrite one another's files.
        first = f"pip uninstall -y {CPU} && " if installed(CPU) else ""
        return MissingCapabilityError(
            f"provider {self.name}: onnxruntime {ort.__version__} {found}; it needs an NVIDIA GPU "
            f"and: {first}pip install 'glm-trt[{_EXTRAS[self.name]}]'"
        )

    def _cannot(self, found: str) -> str:
        """That the provider does not start; the library that it lacks, which onnxruntime writes to
        its log alone, or else what was found.
        """
        library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_{_LIBRARIES[self.name]}.so"
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            if library.exists() and "cannot open shared object" in str(error):
                found = _first_line(error)
        return f"cannot start {self._wanted[0]} ({found})"


@contextlib.contextmanager
def _silent_log() -> Iterator[None]:
    """Nothing of onnxruntime's log, which takes several lines for a provider that is missing."""
    ort.set_default_logger_severity(_SILENT)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_DEFAULT)


def _probe() -> bytes:
    """A graph that every provider runs."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


def _first_line(error: Any) -> str:
    return str(error).strip().splitlines()[0]
