#include "convert.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

namespace glm_trt
{
namespace
{

uint32_t bitsOf(float value)
{
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

float floatOf(uint32_t bits)
{
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

uint16_t toBFloat16(float value)
{
    uint32_t const bits = bitsOf(value);
    if (std::isnan(value))
    {
        return static_cast<uint16_t>((bits >> 16 & 0x8000) | 0x7FC0);
    }
    return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float fromFloat16(uint16_t half)
{
    uint32_t const sign = static_cast<uint32_t>(half & 0x8000) << 16;
    int const exponent = half >> 10 & 31;
    uint32_t const mantissa = half & 1023;
    if (exponent == 31)
    {
        return floatOf(sign | 0x7F800000 | mantissa << 13);
    }
    if (exponent == 0) // zero, or subnormal: mantissa * 2^-24
    {
        float const magnitude = std::ldexp(static_cast<float>(mantissa), -24);
        return floatOf(bitsOf(magnitude) | sign);
    }
    return floatOf(sign | static_cast<uint32_t>(exponent + 112) << 23 | mantissa << 13);
}

uint16_t toFloat16(float value)
{
    uint32_t const bits = bitsOf(value);
    auto const sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    uint32_t const magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000)
    {
        return static_cast<uint16_t>(sign | 0x7C00 | std::max<uint32_t>(1, magnitude >> 13 & 1023)); // NaN
    }
    if (magnitude >= 0x47800000) // 65536 and more
    {
        return sign | 0x7C00;
    }
    if (magnitude < 0x38800000) // below 2^-14: a multiple of 2^-24, rounded by the addition of 2^-1
    {
        float const shifted = floatOf(magnitude) + 0.5F;
        return static_cast<uint16_t>(sign | (bitsOf(shifted) - bitsOf(0.5F)));
    }
    uint32_t const rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
    return static_cast<uint16_t>(sign | (rounded - 0x38000000) >> 13); // up to infinity, if it rounds so
}

std::array<float, 256> makeE4M3()
{
    std::array<float, 256> table{};
    for (int code = 0; code < 256; ++code)
    {
        int const exponent = code >> 3 & 15;
        int const mantissa = code & 7;
        float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                    : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
        if ((code & 127) == 127)
        {
            value = std::numeric_limits<float>::quiet_NaN();
        }
        table[code] = code & 128 ? -value : value;
    }
    return table;
}

template <typename T>
T load(std::byte const* data, size_t i)
{
    T value;
    std::memcpy(&value, data + i * sizeof(T), sizeof(T)); // tensors need not be aligned in a file
    return value;
}

} // namespace

float readFloat(TensorView const& tensor, size_t i)
{
    static std::array<float, 256> const kE4M3 = makeE4M3();
    switch (tensor.dtype)
    {
    case Dtype::kFloat32: return load<float>(tensor.data, i);
    case Dtype::kFloat16: return fromFloat16(load<uint16_t>(tensor.data, i));
    case Dtype::kBFloat16: return floatOf(static_cast<uint32_t>(load<uint16_t>(tensor.data, i)) << 16);
    case Dtype::kFloat8E4M3: return kE4M3[load<uint8_t>(tensor.data, i)];
    case Dtype::kFloat64: return static_cast<float>(load<double>(tensor.data, i));
    case Dtype::kInt8: return load<int8_t>(tensor.data, i);
    case Dtype::kFloat8E5M2: return fromFloat16(static_cast<uint16_t>(load<uint8_t>(tensor.data, i) << 8));
    case Dtype::kFloat8E8M0: return std::ldexp(1.0F, load<uint8_t>(tensor.data, i) - 127);
    case Dtype::kInt64: return static_cast<float>(load<int64_t>(tensor.data, i));
    case Dtype::kInt32: return static_cast<float>(load<int32_t>(tensor.data, i));
    case Dtype::kInt16: return load<int16_t>(tensor.data, i);
    case Dtype::kUint32: return static_cast<float>(load<uint32_t>(tensor.data, i));
    case Dtype::kUint8:
    case Dtype::kBool: break;
    }
    return load<uint8_t>(tensor.data, i);
}

void writeFloats(float const* values, size_t count, Dtype dtype, std::byte* out)
{
    if (dtype == Dtype::kFloat32)
    {
        std::memcpy(out, values, count * sizeof(float));
        return;
    }
    for (size_t i = 0; i < count; ++i)
    {
        uint16_t const narrow = dtype == Dtype::kFloat16 ? toFloat16(values[i]) : toBFloat16(values[i]);
        std::memcpy(out + i * sizeof narrow, &narrow, sizeof narrow);
    }
}

void convert(TensorView const& tensor, size_t first, size_t count, Dtype dtype, std::byte* out)
{
    size_t const size = sizeOf(dtype);
    bool const areBytes = size == 1 && sizeOf(tensor.dtype) == 1;
    if (tensor.dtype == dtype || areBytes)
    {
        std::memcpy(out, tensor.data + first * size, count * size);
        return;
    }
    std::array<float, 1024> values;
    for (size_t done = 0; done < count;)
    {
        size_t const some = std::min(values.size(), count - done);
        for (size_t i = 0; i < some; ++i)
        {
            values[i] = readFloat(tensor, first + done + i);
        }
        writeFloats(values.data(), some, dtype, out + done * size);
        done += some;
    }
}

} // namespace glm_trt
