"""Which weights of a bundle are stored in another float dtype than the one that blocks take."""

from __future__ import annotations

import re
from typing import NamedTuple

from glm_trt.export.bundle.read import Bundle
from glm_trt.model.checkpoint.bindings import NUMPY_DTYPES, tensor_names

_FLOATS = frozenset(name for name in NUMPY_DTYPES if "float" in name)


class Cast(NamedTuple):
    """`tensors` tensors of the names `pattern`, in which * is a layer or an expert."""

    pattern: str
    stored: str
    bound: str
    tensors: int


def find_casts(bundle: Bundle, dtype: str) -> list[Cast]:
    """What is cast where blocks run in `dtype`, in the order of the model. All else is bound as it
    lies in its file; codes and scales of what is stored narrow are not casts.
    """
    found: dict[tuple[str, str, str], set[str]] = {}
    for block in (*bundle.blocks, *bundle.prediction_blocks):
        for binding in block.bindings:
            narrow = binding.transform == "head_rows" and len(binding.tensors) > 1
            bound = binding.dtype or dtype
            for name in () if narrow or bound not in _FLOATS else tensor_names([binding]):
                stored = bundle.weights.tensor(name).dtype.name
                if stored in _FLOATS and stored != bound:
                    pattern = re.sub(r"\.\d+\.", ".*.", name)
                    found.setdefault((pattern, stored, bound), set()).add(name)
    return [Cast(*key, len(names)) for key, names in found.items()]
