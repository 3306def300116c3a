// Numbers from one dtype to another, rounding to nearest even as NumPy and ml_dtypes do.
#pragma once

#include "tensor.h"

namespace glm_trt
{

//! The value of element `i`.
float readFloat(TensorView const& tensor, size_t i);

//! Writes `count` values as `dtype`, which is one of float32, float16, bfloat16.
void writeFloats(float const* values, size_t count, Dtype dtype, std::byte* out);

//! Elements first ... first + count - 1 of `tensor` as `dtype`: copied where they have it, or where both are one byte
//! wide (stored bytes).
void convert(TensorView const& tensor, size_t first, size_t count, Dtype dtype, std::byte* out);

} // namespace glm_trt
