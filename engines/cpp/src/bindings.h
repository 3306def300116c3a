// Which checkpoint tensors feed which input of a block, after which transformation: as model/bindings.py.
#pragma once

#include "safetensors.h"

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace glm_trt
{

//! One weight input of a block.
struct Binding
{
    std::string name;                 // the graph's input
    std::vector<std::string> tensors; // "{expert}" stands for 0 ... experts - 1
    std::string transform;            // "none", "fill", "head_rows", "stack_experts"
    std::map<std::string, int64_t> arguments;
    std::vector<int64_t> shape;
    std::optional<Dtype> dtype; // whatever the block's own is
};

//! What the input takes in a block of `dtype`.
size_t boundBytes(Binding const& binding, Dtype dtype);

//! Writes boundBytes to `out`, what model.bindings.bound_tensor gives, byte for byte. Throws CheckpointError where the
//! tensors do not give the binding's shape.
void bindInto(Binding const& binding, TensorFiles const& files, Dtype dtype, std::byte* out);

} // namespace glm_trt
