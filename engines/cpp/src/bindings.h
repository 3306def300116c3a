// Which checkpoint tensors feed which input of a block, after which transformation: as model/checkpoint/bindings.py.
#pragma once

#include "bundle_format.h"
#include "safetensors.h"

namespace glm_trt
{

//! What the input takes in a block of `dtype`.
size_t boundBytes(Binding const& binding, Dtype dtype);

//! Writes boundBytes to `out`, what model.bindings.bound_tensor gives, byte for byte. Throws CheckpointError where the
//! tensors do not give the binding's shape.
void bindInto(Binding const& binding, TensorFiles const& files, Dtype dtype, std::byte* out);

} // namespace glm_trt
