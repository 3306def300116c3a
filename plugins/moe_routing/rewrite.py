"""MoE routing on onnxruntime's CPU kernels."""

from __future__ import annotations

import onnx

from glm_trt.plugins.common.rewriting import Graph, Rewritten, attribute


def rewrite(node: onnx.NodeProto, _: Graph, __: int) -> Rewritten | None:
    """Routing that keeps every group → the best of all experts, in a third of the nodes.

    Rewritten where `topk_group` is `n_group`; the arithmetic is the same, bit for bit.
    """
    if attribute(node, "n_group") != attribute(node, "topk_group"):
        return None
    normalised = attribute(node, "norm_topk_prob") == 1
    factor = attribute(node, "routed_scaling_factor")
    return Rewritten(_function(attribute(node, "top_k"), normalised, factor))


def _function(top_k: int, normalised: bool, factor: float) -> str:
    normalise = """
    last = Constant <value = int64[1] {-1}> ()
    total = ReduceSum <keepdims = 1> (picked, last)
    tiny = Constant <value = float {1e-20}> ()
    safe = Add (total, tiny)
    shares = Div (picked, safe)"""
    return f"""(logits, correction_bias) => (indices, weights) {{
    scores = Sigmoid (logits)
    choice = Add (scores, correction_bias)
    count = Constant <value = int64[1] {{{top_k}}}> ()
    best, chosen = TopK <axis = -1> (choice, count)
    picked = GatherElements <axis = 1> (scores, chosen){normalise if normalised else ""}
    factor = Constant <value = float {{{factor!r}}}> ()
    weights = Mul ({"shares" if normalised else "picked"}, factor)
    indices = Cast <to = 6> (chosen)
}}"""
