"""Linear attention on onnxruntime's CPU kernels."""

from __future__ import annotations

import onnx

from glm_trt.plugins.common.rewriting import Graph, Rewritten, attribute


def rewrite(node: onnx.NodeProto, _: Graph, __: int) -> Rewritten:
    """`com.microsoft.LinearAttention`: the same contract, a faster kernel.

    Takes a third to a seventh of the standard node's time, for one token and for hundreds.
    (`com.microsoft.GatedDeltaNet` takes twice the standard node's at real head widths, and wants
    the state transposed.) Always rewritten.
    """
    q_heads, kv_heads = attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")
    rule = attribute(node, "update_rule").decode()
    return Rewritten(_function(q_heads, kv_heads, rule, attribute(node, "scale")))


def _function(q_heads: int, kv_heads: int, rule: str, scale: float) -> str:
    return f"""(query, key, value, past, decay, beta) => (output, present) {{
    output, present = com.microsoft.LinearAttention <
        q_num_heads = {q_heads}, kv_num_heads = {kv_heads}, update_rule = "{rule}",
        scale = {scale!r}
    > (query, key, value, past, decay, beta)
}}"""
