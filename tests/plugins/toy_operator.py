"""A folder of an operator that nothing here knows, written where a test wants it."""

from __future__ import annotations

from pathlib import Path

FILES = {
    "__init__": '"""Toy: y = x + scale * other."""\n',
    "contract": """
from glm_trt.plugins.common.contract import Contract, Port

CONTRACT = Contract(
    name="ToyAdd",
    torch_name="toy_add",
    doc="x + scale * other.",
    inputs=(Port("x", ("T", "width")), Port("other", ("T", "width"))),
    outputs=(Port("y", ("T", "width")),),
    attributes={"scale": float},
    tolerance={"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2},
)
""",
    "reference": '''
def reference(x, other, *, scale):
    """x, other [T, width] -> [T, width]; float32 inside, or float64 where they are."""
    wide = x if x.element_size() == 8 else x.float()
    return (wide + scale * other).to(x.dtype)
''',
    "onnx_body": '''
from glm_trt.plugins.common.onnx_text import parsed

_BODY = """
ToyAdd <scale> (x, other) => (y) {
    factor = Constant <value_float: float = @scale> ()
    typed = CastLike (factor, x)
    scaled = Mul (other, typed)
    y = Add (x, scaled)
}
"""


def body():
    return parsed(_BODY)
''',
    "kernel": """
import triton
import triton.language as tl


@triton.jit
def toy_add(p_x, p_other, p_y, n, scale, BLOCK: tl.constexpr):
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.load(p_x + o, mask=o < n, other=0.0).to(tl.float32)
    b_other = tl.load(p_other + o, mask=o < n, other=0.0).to(tl.float32)
    tl.store(p_y + o, (b_x + scale * b_other).to(p_y.dtype.element_ty), mask=o < n)
""",
    "launch": """
from glm_trt.plugins.common.launch import Launch, Launches
from glm_trt.plugins.toy_add.contract import CONTRACT

LAUNCHES = Launches(
    CONTRACT,
    steps=(
        Launch(
            "toy_add",
            grid=("cdiv(T * width, BLOCK)", "1", "1"),
            arguments=("x", "other", "y", "T * width", "scale"),
            configs={"*": {"BLOCK": 128, "num_warps": 4, "num_stages": 1}},
        ),
    ),
    limits=(("width >= 1", "at least one column"),),
)
""",
    "cases": """
import torch

from glm_trt.plugins.common.cases import Case, Sampled

CASES = [
    Case(
        "odd",
        {"scale": 0.5},
        lambda generator, dtype: [torch.randn(3, 67, generator=generator).to(dtype) for _ in "xo"],
    )
]
SAMPLED = Sampled({"T": 100, "width": 100}, attributes=lambda _: {"scale": 1.0})
""",
    "cost": """
from glm_trt.plugins.common.cost import Cost

COST = Cost(
    bytes="3 * T * width * ITEMSIZE",
    operations="2 * T * width",
    sizes=lambda config: {"width": config.hidden_size},
)
""",
}


def write_toy(place: Path, without: tuple[str, ...] = (), name: str = "toy_add") -> Path:
    """The folder of the operator in `place`, which belongs to `glm_trt.plugins.__path__`."""
    folder = place / name
    folder.mkdir(parents=True)
    for part, text in FILES.items():
        if part not in without:
            (folder / f"{part}.py").write_text(text)
    return folder
