#include "file.h"

#include "glm_trt/errors.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace glm_trt
{
namespace
{

[[noreturn]] void fail(std::filesystem::path const& path)
{
    throw BundleError(path.string() + ": " + std::strerror(errno));
}

} // namespace

FileReader::FileReader(std::filesystem::path const& path)
    : mPath(path)
    , mDescriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC))
{
    struct stat status;
    if (mDescriptor < 0)
    {
        fail(path);
    }
    if (::fstat(mDescriptor, &status) != 0 || (S_ISDIR(status.st_mode) && (errno = EISDIR)))
    {
        int const error = errno;
        ::close(mDescriptor);
        errno = error;
        fail(path);
    }
    mSize = static_cast<size_t>(status.st_size);
}

FileReader::~FileReader()
{
    ::close(mDescriptor);
}

size_t FileReader::read(std::byte* to, size_t bytes)
{
    size_t done = 0;
    while (done < bytes)
    {
        ssize_t const count = ::read(mDescriptor, to + done, bytes - done);
        if (count < 0 && errno == EINTR)
        {
            continue;
        }
        if (count < 0)
        {
            fail(mPath);
        }
        if (count == 0)
        {
            break;
        }
        done += static_cast<size_t>(count);
    }
    return done;
}

void FileReader::seek(size_t offset)
{
    if (::lseek(mDescriptor, static_cast<off_t>(offset), SEEK_SET) < 0)
    {
        fail(mPath);
    }
}

std::string FileReader::rest()
{
    std::string text(mSize, '\0');
    text.resize(read(reinterpret_cast<std::byte*>(text.data()), text.size()));
    return text;
}

FileMapping::FileMapping(FileReader const& file)
    : mSize(file.size())
{
    if (mSize == 0)
    {
        return; // which mmap refuses
    }
    void* data = ::mmap(nullptr, mSize, PROT_READ, MAP_SHARED, file.descriptor(), 0);
    if (data == MAP_FAILED)
    {
        throw BundleError(std::string("a file could not be mapped: ") + std::strerror(errno));
    }
    mData = static_cast<std::byte const*>(data);
}

FileMapping::~FileMapping()
{
    if (mData != nullptr)
    {
        ::munmap(const_cast<std::byte*>(mData), mSize);
    }
}

} // namespace glm_trt
