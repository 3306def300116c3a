#include "bindings.h"

#include "convert.h"
#include "glm_trt/errors.h"

#include <array>
#include <functional>
#include <numeric>

namespace glm_trt
{
namespace
{

constexpr int64_t kFp8Block = 128;   // rows and columns that share a scale
constexpr int64_t kNvfp4Group = 16;  // columns that share a scale
constexpr std::array<float, 16> kE2M1{0, .5F, 1, 1.5F, 2, 3, 4, 6, -0.F, -.5F, -1, -1.5F, -2, -3, -4, -6};

size_t elements(std::vector<int64_t> const& shape)
{
    return std::accumulate(shape.begin(), shape.end(), size_t{1},
        [](size_t product, int64_t size) { return product * static_cast<size_t>(size); });
}

[[noreturn]] void fail(Binding const& binding, std::vector<int64_t> const& given)
{
    throw CheckpointError(binding.tensors.at(0) + ": input " + binding.name + " expects shape "
        + asTuple(binding.shape) + ", " + binding.transform + " gives " + asTuple(given));
}

void expectShape(Binding const& binding, std::vector<int64_t> const& given)
{
    if (given != binding.shape)
    {
        fail(binding, given);
    }
}

//! Dequantises row `row` of a matrix stored narrow: FP8 codes and scales, or NVFP4 codes, scales and a global scale.
class NarrowMatrix
{
public:
    NarrowMatrix(Binding const& binding, std::vector<TensorView> parts)
        : mParts(std::move(parts))
        , mIsFp8(mParts.size() == 2)
    {
        auto const& codes = mParts[0].shape;
        auto const& scales = mParts[1].shape;
        mIsByTensor = mIsFp8 && elements(scales) == 1; // one scale for all
        if (codes.size() != 2 || (scales.size() != 2 && !mIsByTensor))
        {
            fail(binding, codes);
        }
        mColumns = mIsFp8 ? codes[1] : codes[1] * 2;
        auto const blocks = [](int64_t size, int64_t of) { return (size + of - 1) / of; };
        std::vector<int64_t> const expected = mIsFp8
            ? std::vector<int64_t>{blocks(codes[0], kFp8Block), blocks(mColumns, kFp8Block)}
            : std::vector<int64_t>{codes[0], mColumns / kNvfp4Group};
        if ((scales != expected && !mIsByTensor) || (!mIsFp8 && elements(mParts[2].shape) != 1))
        {
            fail(binding, scales);
        }
    }

    std::vector<int64_t> shape() const
    {
        return {mParts[0].shape[0], mColumns};
    }

    void row(int64_t row, float* out) const
    {
        int64_t const scales = mIsByTensor ? 0 : mParts[1].shape[1];
        for (int64_t column = 0; column < mColumns; ++column)
        {
            if (mIsFp8)
            {
                int64_t const block = mIsByTensor ? 0 : row / kFp8Block * scales + column / kFp8Block;
                float const scale = readFloat(mParts[1], static_cast<size_t>(block));
                out[column] = readFloat(mParts[0], static_cast<size_t>(row * mColumns + column)) * scale;
                continue;
            }
            auto const byte
                = std::to_integer<unsigned>(mParts[0].data[static_cast<size_t>((row * mColumns + column) / 2)]);
            float const value = kE2M1[column % 2 ? byte >> 4 : byte & 15]; // the first in the low bits
            float const scale = readFloat(mParts[1], static_cast<size_t>(row * scales + column / kNvfp4Group));
            out[column] = value * scale * readFloat(mParts[2], 0);
        }
    }

private:
    std::vector<TensorView> mParts;
    bool mIsFp8;
    bool mIsByTensor{false};
    int64_t mColumns{0};
};

//! View [heads, rows, columns], rows start ... stop - 1 of each head.
void bindHeadRows(
    Binding const& binding, std::vector<TensorView> const& parts, Dtype dtype, std::byte* out)
{
    std::optional<NarrowMatrix> narrow;
    std::vector<int64_t> shape = parts[0].shape;
    if (parts.size() > 1)
    {
        narrow.emplace(binding, parts);
        shape = narrow->shape();
    }
    auto const argument = [&](char const* name)
    {
        auto const found = binding.arguments.find(name);
        if (found == binding.arguments.end())
        {
            fail(binding, shape);
        }
        return found->second;
    };
    int64_t const heads = argument("heads");
    int64_t const start = argument("start");
    int64_t const stop = argument("stop");
    if (shape.size() != 2 || heads < 1 || shape[0] % heads != 0 || start < 0 || stop < start
        || stop > shape[0] / heads)
    {
        fail(binding, shape);
    }
    int64_t const rows = shape[0] / heads;
    int64_t const columns = shape[1];
    expectShape(binding, {heads, stop - start, columns});
    size_t const rowBytes = static_cast<size_t>(columns) * sizeOf(dtype);
    std::vector<float> wide(narrow ? static_cast<size_t>(columns) : 0);
    for (int64_t head = 0; head < heads; ++head)
    {
        for (int64_t row = head * rows + start; row < head * rows + stop; ++row, out += rowBytes)
        {
            if (narrow)
            {
                narrow->row(row, wide.data());
                writeFloats(wide.data(), wide.size(), dtype, out);
            }
            else
            {
                convert(parts[0], static_cast<size_t>(row * columns), static_cast<size_t>(columns), dtype, out);
            }
        }
    }
}

std::string ofExpert(std::string name, int64_t expert)
{
    static std::string const kMark = "{expert}";
    size_t const place = name.find(kMark);
    return place == std::string::npos ? name : name.replace(place, kMark.size(), std::to_string(expert));
}

//! The tensor's one number, `count` times.
void fillWith(TensorView const& one, size_t count, Dtype dtype, std::byte* out)
{
    for (size_t i = 0; i < count; ++i)
    {
        convert(one, 0, 1, dtype, out + i * sizeOf(dtype));
    }
}

//! Of each expert the tensors after one another; or the one number of each, which fills its share.
void stackExperts(Binding const& binding, TensorFiles const& files, Dtype dtype, std::byte* out)
{
    auto const experts = binding.arguments.find("experts");
    if (experts == binding.arguments.end() || binding.shape.empty() || experts->second != binding.shape[0])
    {
        fail(binding, {});
    }
    size_t const ofOne = elements({binding.shape.begin() + 1, binding.shape.end()});
    bool const fills = binding.arguments.count("fill") != 0;
    for (int64_t expert = 0; expert < experts->second; ++expert)
    {
        size_t filled = 0;
        for (auto const& name : binding.tensors)
        {
            TensorView const part = files.tensor(ofExpert(name, expert));
            size_t const count = fills ? ofOne / binding.tensors.size() : elements(part.shape);
            if (filled + count > ofOne || (fills && elements(part.shape) != 1))
            {
                fail(binding, part.shape);
            }
            if (fills)
            {
                fillWith(part, count, dtype, out);
            }
            else
            {
                convert(part, 0, count, dtype, out);
            }
            out += count * sizeOf(dtype);
            filled += count;
        }
        if (filled != ofOne)
        {
            fail(binding, {expert, static_cast<int64_t>(filled)});
        }
    }
}

} // namespace

size_t boundBytes(Binding const& binding, Dtype dtype)
{
    return elements(binding.shape) * sizeOf(binding.dtype.value_or(dtype));
}

void bindInto(Binding const& binding, TensorFiles const& files, Dtype dtype, std::byte* out)
{
    dtype = binding.dtype.value_or(dtype);
    if (binding.transform == "stack_experts")
    {
        stackExperts(binding, files, dtype, out);
        return;
    }
    std::vector<TensorView> parts;
    for (auto const& name : binding.tensors)
    {
        parts.push_back(files.tensor(name));
    }
    if (binding.transform == "head_rows")
    {
        bindHeadRows(binding, parts, dtype, out);
        return;
    }
    auto const& shape = parts.at(0).shape;
    if (binding.transform == "fill")
    {
        if (elements(shape) != 1)
        {
            fail(binding, shape);
        }
        fillWith(parts[0], elements(binding.shape), dtype, out);
        return;
    }
    expectShape(binding, shape.empty() ? std::vector<int64_t>{1} : shape);
    convert(parts[0], 0, elements(shape), dtype, out);
}

} // namespace glm_trt
