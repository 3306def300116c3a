// Files of the system: reading and mapping, with RAII.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

namespace glm_trt
{

//! A file open for reading. Throws BundleError, which says what the system says.
class FileReader
{
public:
    explicit FileReader(std::filesystem::path const& path);
    ~FileReader();
    FileReader(FileReader const&) = delete;
    FileReader& operator=(FileReader const&) = delete;

    size_t size() const
    {
        return mSize;
    }
    //! Up to `bytes`; how many there were, 0 at the end.
    size_t read(std::byte* to, size_t bytes);
    void seek(size_t offset);
    //! All that is left, as text.
    std::string rest();
    int descriptor() const
    {
        return mDescriptor;
    }

private:
    std::filesystem::path mPath;
    int mDescriptor;
    size_t mSize{0};
};

//! A whole file mapped read-only; an empty one has no data.
class FileMapping
{
public:
    explicit FileMapping(FileReader const& file);
    ~FileMapping();
    FileMapping(FileMapping const&) = delete;
    FileMapping& operator=(FileMapping const&) = delete;

    std::byte const* data() const
    {
        return mData;
    }

private:
    std::byte const* mData{nullptr};
    size_t mSize;
};

} // namespace glm_trt
