// One safetensors file, mapped: header checked strictly, tensors as views.
// As model/checkpoint/safetensors_file.py, with its texts.
#pragma once

#include "file.h"
#include "tensor.h"

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace glm_trt
{

//! Where a tensor lies; `offset` in bytes from the start of the file.
struct TensorInfo
{
    Dtype dtype;
    std::vector<int64_t> shape;
    size_t offset;
    size_t bytes;
};

using TensorTable = std::unordered_map<std::string, TensorInfo>;

//! The tensors that a header announces. Throws CheckpointError naming `path` and the tensor.
//! header: the JSON text behind the 8 bytes of its length; fileBytes: the size of the whole file.
TensorTable parseSafetensorsHeader(std::string const& path, std::string_view header, size_t fileBytes);

class SafetensorsFile
{
public:
    //! Throws CheckpointError.
    explicit SafetensorsFile(std::filesystem::path const& path);

    TensorTable const& tensors() const
    {
        return mTensors;
    }
    TensorView view(TensorInfo const& info) const;
    std::filesystem::path const& path() const
    {
        return mPath;
    }
    //! Of the first 8 bytes and the header.
    std::string const& headerSha256() const
    {
        return mHeaderSha256;
    }
    //! Of 16 pages at even distances: notices other weights under the same header.
    std::string sampleSha256() const;

private:
    std::filesystem::path mPath;
    size_t mSize{0};
    std::string mHeaderSha256;
    TensorTable mTensors;
    std::unique_ptr<FileMapping> mMapping;
};

//! Several files as one source of tensors by name.
class TensorFiles
{
public:
    TensorFiles() = default;
    explicit TensorFiles(std::vector<std::unique_ptr<SafetensorsFile>> files);
    //! A view of the mapped file. Throws CheckpointError where no file has it.
    TensorView tensor(std::string const& name) const;
    bool has(std::string const& name) const
    {
        return mFileOf.count(name) != 0;
    }

private:
    std::vector<std::unique_ptr<SafetensorsFile>> mFiles;
    std::unordered_map<std::string, SafetensorsFile const*> mFileOf;
};

} // namespace glm_trt
