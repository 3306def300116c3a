"""Decoding FP8 (e4m3fn) and FP4 (e2m1) bytes in Triton, and rounding to FP8, on every target.

Bytes are int8: TensorRT takes no other form of them on all targets.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from glm_trt.plugins.common.triton_helpers import INTERPRETED


@triton.jit
def e4m3(b_bytes, HARDWARE: tl.constexpr):
    """The values of e4m3fn bytes, exactly, in float16; `HARDWARE`: the target converts them."""
    if HARDWARE and not INTERPRETED:  # the interpreter makes 480 of NaN
        return b_bytes.to(tl.float8e4nv, bitcast=True).to(tl.float16)
    b_wide = b_bytes.to(tl.int16)  # the sign is in bits 8 to 15 too
    # Sign, exponent and mantissa at float16's places; the biases of the exponents are 7 and 15.
    b_value = ((b_wide << 7) & -0x4080).to(tl.float16, bitcast=True) * 256.0
    return tl.where((b_wide & 0x7F) == 0x7F, float("nan"), b_value)


@triton.jit
def e2m1_pairs(b_bytes):
    """The values of a byte's two e2m1 codes, low bits first, exactly, in float16."""
    b_wide = b_bytes.to(tl.int16)
    # At float16's places, as above; the biases are 1 and 15.
    b_low = ((b_wide << 12) & -0x8000) | ((b_wide << 9) & 0x0E00)
    b_high = (b_wide << 5) & -0x7200
    b_low = b_low.to(tl.float16, bitcast=True) * 16384.0
    return b_low, b_high.to(tl.float16, bitcast=True) * 16384.0


@triton.jit
def round_to_e4m3(b_x):
    """Float32 of at most 448 to the nearest e4m3 value, ties to even, in float32."""
    b_size = tl.abs(b_x)
    # Steps are 2⁻³ of the value's power of two, at least 2⁻⁹: those of float32 at 2²⁰ times that.
    b_power = tl.maximum(b_size.to(tl.int32, bitcast=True) & 0x7F800000, 0x3C800000)
    b_large = (b_power + (20 << 23)).to(tl.float32, bitcast=True)
    b_size = (b_size + b_large) - b_large
    return tl.where(b_x < 0, -b_size, b_size)


@triton.jit
def fp8_sums(b_bytes, b_x, HARDWARE: tl.constexpr):
    """bytes [N, K], x [K] → sums of their products over 16 neighbours each [N, K / 16].

    16 are what a thread loads at once, so that nothing moves between threads.
    """
    b_w = e4m3(b_bytes, HARDWARE).to(tl.float32)
    b_products = b_w * b_x[None, :]
    N: tl.constexpr = b_products.shape[0]
    K: tl.constexpr = b_products.shape[1]
    return tl.sum(tl.reshape(b_products, [N, K // 16, 16]), 2)


@triton.jit
def nvfp4_sums(b_bytes, b_x):
    """bytes [N, K / 2], x [K] → sums of their products over each scale's 16 [N, K / 16]."""
    b_low, b_high = e2m1_pairs(b_bytes)
    N: tl.constexpr = b_bytes.shape[0]
    K: tl.constexpr = b_x.shape[0]
    b_even, b_odd = tl.split(tl.reshape(b_x, [K // 2, 2]))
    b_products = b_low.to(tl.float32) * b_even[None, :] + b_high.to(tl.float32) * b_odd[None, :]
    return tl.sum(tl.reshape(b_products, [N, K // 16, 8]), 2)


@triton.jit
def nvfp4_values(b_bytes, b_scales):
    """bytes [N, K / 2], scales' bytes [N, K / 16] → values [N, K] in float16, without global scale.

    Exact: a product of a value (2 bits) and a scale (4 bits) has 6, between 2⁻¹⁰ and 2688.
    """
    b_low, b_high = e2m1_pairs(b_bytes)
    N: tl.constexpr = b_bytes.shape[0]
    K: tl.constexpr = 2 * b_bytes.shape[1]
    b_values = tl.reshape(tl.interleave(b_low, b_high), [N, K // 16, 16])
    return tl.reshape(b_values * e4m3(b_scales, False)[:, :, None], [N, K])
