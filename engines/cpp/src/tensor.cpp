#include "tensor.h"

#include <array>

namespace glm_trt
{
namespace
{

struct Kind
{
    Dtype dtype;
    char const* name;
    size_t size;
};

// In the order of the enumeration.
constexpr std::array<Kind, 14> kKinds{{{Dtype::kFloat32, "float32", 4}, {Dtype::kFloat16, "float16", 2},
    {Dtype::kBFloat16, "bfloat16", 2}, {Dtype::kFloat8E4M3, "float8_e4m3fn", 1}, {Dtype::kInt8, "int8", 1},
    {Dtype::kUint8, "uint8", 1}, {Dtype::kFloat64, "float64", 8}, {Dtype::kFloat8E5M2, "float8_e5m2", 1},
    {Dtype::kFloat8E8M0, "float8_e8m0fnu", 1}, {Dtype::kInt64, "int64", 8}, {Dtype::kInt32, "int32", 4},
    {Dtype::kInt16, "int16", 2}, {Dtype::kUint32, "uint32", 4}, {Dtype::kBool, "bool", 1}}};

} // namespace

std::optional<Dtype> dtypeOf(std::string_view name)
{
    for (auto const& kind : kKinds)
    {
        if (name == kind.name)
        {
            return kind.dtype;
        }
    }
    return std::nullopt;
}

char const* nameOf(Dtype dtype)
{
    return kKinds[static_cast<size_t>(dtype)].name;
}

size_t sizeOf(Dtype dtype)
{
    return kKinds[static_cast<size_t>(dtype)].size;
}

std::string asTuple(std::vector<int64_t> const& shape)
{
    std::string text;
    for (int64_t const size : shape)
    {
        text += (text.empty() ? "" : ", ") + std::to_string(size);
    }
    return "(" + text + (shape.size() == 1 ? ",)" : ")");
}

} // namespace glm_trt
