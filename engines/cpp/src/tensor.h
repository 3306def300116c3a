// Tensors as they lie in files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace glm_trt
{

enum class Dtype
{
    kFloat32,
    kFloat16,
    kBFloat16,
    kFloat8E4M3,
    kInt8,
    kUint8,
    kFloat64,
    kFloat8E5M2,
    kFloat8E8M0,
    kInt64,
    kInt32,
    kInt16,
    kUint32,
    kBool
};

//! By the name that manifests use ("float32"); none for another name.
std::optional<Dtype> dtypeOf(std::string_view name);
char const* nameOf(Dtype dtype);
size_t sizeOf(Dtype dtype);
//! A shape as Python writes a tuple: (), (5,), (2, 3).
std::string asTuple(std::vector<int64_t> const& shape);

//! Bytes that someone else owns.
struct TensorView
{
    Dtype dtype;
    std::vector<int64_t> shape;
    std::byte const* data;
    size_t bytes;
};

} // namespace glm_trt
