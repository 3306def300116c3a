#include "safetensors.h"

#include "glm_trt/errors.h"
#include "json.h"
#include "sha256.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>

namespace glm_trt
{
namespace
{

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kSamples = 16;
constexpr size_t kSampleBytes = 4096;

struct Code
{
    char const* name;
    Dtype dtype;
};
constexpr std::array<Code, 14> kCodes{{{"F32", Dtype::kFloat32}, {"F16", Dtype::kFloat16}, {"BF16", Dtype::kBFloat16},
    {"F8_E4M3", Dtype::kFloat8E4M3}, {"U8", Dtype::kUint8}, {"I8", Dtype::kInt8}, {"F64", Dtype::kFloat64},
    {"F8_E5M2", Dtype::kFloat8E5M2}, {"F8_E8M0", Dtype::kFloat8E8M0}, {"I64", Dtype::kInt64}, {"I32", Dtype::kInt32},
    {"I16", Dtype::kInt16}, {"U32", Dtype::kUint32}, {"BOOL", Dtype::kBool}}};

constexpr size_t kMaxBeginning = 64; // bytes that tell what a file is

//! What a file that should hold weights is instead, where its beginning tells.
std::optional<std::string> whatItIs(std::string_view data)
{
    constexpr std::string_view kLfsPointer = "version https://git-lfs.github.com/spec/";
    constexpr std::array<std::pair<std::string_view, char const*>, 3> kMarks{
        {{"\xEF\xBB\xBF", "UTF-8"}, {"\xFF\xFE", "UTF-16"}, {"\xFE\xFF", "UTF-16"}}};
    auto const begins = [data](std::string_view with) { return data.substr(0, with.size()) == with; };
    if (begins(kLfsPointer))
    {
        return "a Git LFS pointer, not the file itself; fetch that with git lfs pull, or with hf download";
    }
    for (auto const& [mark, name] : kMarks)
    {
        if (begins(mark))
        {
            return std::string("begins with the byte-order mark of ") + name + "; save it as UTF-8 without one";
        }
    }
    if (data.find_first_not_of(" \t\n\r\v\f") == std::string_view::npos)
    {
        return "empty";
    }
    return std::nullopt;
}

//! Whether `value` is a list of whole numbers of 0 or more; puts them into `numbers`.
bool readSizes(Json const* value, std::vector<int64_t>& numbers)
{
    if (value == nullptr || !value->is_array())
    {
        return false;
    }
    for (auto const& item : *value)
    {
        if (!item.is_number_integer() || item.get<int64_t>() < 0)
        {
            return false;
        }
        numbers.push_back(item.get<int64_t>());
    }
    return true;
}

//! Bytes of a tensor; none where they are 2^63 or more.
std::optional<int64_t> bytesOf(std::vector<int64_t> const& shape, Dtype dtype)
{
    if (std::find(shape.begin(), shape.end(), 0) != shape.end())
    {
        return 0;
    }
    auto bytes = static_cast<int64_t>(sizeOf(dtype));
    for (int64_t const size : shape)
    {
        if (__builtin_mul_overflow(bytes, size, &bytes))
        {
            return std::nullopt;
        }
    }
    return bytes;
}

using Span = std::tuple<int64_t, int64_t, std::string>; // begin, end, name

void checkSpans(std::string const& path, std::vector<Span>& spans, size_t start, size_t fileBytes)
{
    // Sums of an offset below 2^63 and a header within a file stay within 64 bits without a sign.
    auto const behind = [start](int64_t offset) { return start + static_cast<uint64_t>(offset); };
    std::sort(spans.begin(), spans.end());
    int64_t position = 0;
    for (auto const& [begin, end, name] : spans)
    {
        if (begin != position)
        {
            throw CheckpointError(path + ": " + name + ": data expected at offset " + std::to_string(position)
                + ", found at " + std::to_string(begin));
        }
        if (behind(end) > fileBytes)
        {
            throw CheckpointError(path + ": " + name + ": file truncated: expected at least "
                + std::to_string(behind(end)) + " bytes, found " + std::to_string(fileBytes));
        }
        position = end;
    }
    if (behind(position) != fileBytes)
    {
        throw CheckpointError(path + ": expected " + std::to_string(behind(position)) + " bytes, found "
            + std::to_string(fileBytes));
    }
}

TensorInfo readEntry(std::string const& path, std::string const& name, Json const& entry, std::vector<Span>& spans)
{
    Json const* kind = find(entry, "dtype");
    std::vector<int64_t> shape;
    std::vector<int64_t> offsets;
    if (kind == nullptr || !kind->is_string() || !readSizes(find(entry, "shape"), shape)
        || !readSizes(find(entry, "data_offsets"), offsets) || offsets.size() != 2)
    {
        throw CheckpointError(path + ": " + name
            + ": expected a dtype, a shape and two data_offsets, in whole numbers of 0 or more");
    }
    auto const& code = kind->get_ref<std::string const&>();
    auto const known = std::find_if(kCodes.begin(), kCodes.end(), [&](Code const& c) { return code == c.name; });
    if (known == kCodes.end())
    {
        std::string names;
        for (auto const& c : kCodes)
        {
            names += (names.empty() ? "" : ", ") + std::string(c.name);
        }
        throw CheckpointError(path + ": " + name + ": dtype: expected " + names + "; found " + code);
    }
    auto const bytes = bytesOf(shape, known->dtype);
    if (!bytes)
    {
        throw CheckpointError(
            path + ": " + name + ": " + code + " " + asTuple(shape) + " are more bytes than a file can have");
    }
    if (offsets[1] - offsets[0] != *bytes)
    {
        throw CheckpointError(path + ": " + name + ": expected " + std::to_string(*bytes) + " bytes for " + code + " "
            + asTuple(shape) + ", found " + std::to_string(offsets[1] - offsets[0]));
    }
    spans.emplace_back(offsets[0], offsets[1], name);
    return {known->dtype, std::move(shape), static_cast<size_t>(offsets[0]), static_cast<size_t>(*bytes)};
}

} // namespace

TensorTable parseSafetensorsHeader(std::string const& path, std::string_view header, size_t fileBytes)
{
    Json entries;
    try
    {
        entries = parseJson(header);
    }
    catch (RepeatedName const& error)
    {
        throw CheckpointError(path + ": " + error.what() + ": listed twice in the header");
    }
    catch (NotJson const&)
    {
        throw CheckpointError(path + ": header is not JSON");
    }
    if (!entries.is_object())
    {
        throw CheckpointError(path + ": header: expected a JSON object");
    }
    size_t const start = 8 + header.size();
    std::vector<Span> spans;
    TensorTable tensors;
    for (auto const& [name, entry] : entries.items())
    {
        if (name != "__metadata__")
        {
            TensorInfo info = readEntry(path, name, entry, spans);
            info.offset += start;
            tensors.emplace(name, std::move(info));
        }
    }
    checkSpans(path, spans, start, fileBytes);
    return tensors;
}

SafetensorsFile::SafetensorsFile(std::filesystem::path const& path)
    : mPath(path)
{
    try
    {
        FileReader file(path);
        mSize = file.size();
        std::array<uint8_t, 8> head{};
        size_t const held = file.read(reinterpret_cast<std::byte*>(head.data()), head.size());
        uint64_t length = 0;
        for (size_t i = 0; i < held; ++i)
        {
            length |= static_cast<uint64_t>(head[i]) << (8 * i);
        }
        if (held < head.size() || length > std::min<uint64_t>(kMaxHeaderBytes, mSize - head.size()))
        {
            std::string beginning(reinterpret_cast<char const*>(head.data()), held);
            beginning.resize(held + kMaxBeginning);
            beginning.resize(held + file.read(reinterpret_cast<std::byte*>(beginning.data()) + held, kMaxBeginning));
            if (auto const known = whatItIs(beginning))
            {
                throw CheckpointError(path.string() + ": " + *known);
            }
            throw CheckpointError(path.string() + ": header of " + std::to_string(length)
                + " bytes does not fit a file of " + std::to_string(mSize)
                + " bytes: truncated, or not safetensors");
        }
        std::string header(length, '\0');
        header.resize(file.read(reinterpret_cast<std::byte*>(header.data()), length));
        Sha256 digest;
        digest.update(head.data(), head.size());
        digest.update(header.data(), header.size());
        mHeaderSha256 = digest.hex();
        mTensors = parseSafetensorsHeader(path.string(), header, mSize);
        mMapping = std::make_unique<FileMapping>(file);
    }
    catch (BundleError const& error)
    {
        throw CheckpointError(error.what());
    }
}

TensorView SafetensorsFile::view(TensorInfo const& info) const
{
    return {info.dtype, info.shape, mMapping->data() + info.offset, info.bytes};
}

std::string SafetensorsFile::sampleSha256() const
{
    size_t const last = mSize > kSampleBytes ? mSize - kSampleBytes : 0;
    Sha256 digest;
    for (size_t i = 0; i < kSamples; ++i)
    {
        // Without overflow for any file: last / 15 first.
        size_t const whole = last / (kSamples - 1) * i;
        size_t const offset = whole + last % (kSamples - 1) * i / (kSamples - 1);
        digest.update(mMapping->data() + offset, std::min(kSampleBytes, mSize - offset));
    }
    return digest.hex();
}

TensorFiles::TensorFiles(std::vector<std::unique_ptr<SafetensorsFile>> files)
    : mFiles(std::move(files))
{
    for (auto const& file : mFiles)
    {
        for (auto const& entry : file->tensors())
        {
            mFileOf[entry.first] = file.get();
        }
    }
}

TensorView TensorFiles::tensor(std::string const& name) const
{
    auto const found = mFileOf.find(name);
    if (found == mFileOf.end())
    {
        std::string names;
        for (auto const& file : mFiles)
        {
            names += (names.empty() ? "" : ", ") + file->path().string();
        }
        throw CheckpointError(name + ": in none of " + names);
    }
    return found->second->view(found->second->tensors().at(name));
}

} // namespace glm_trt
