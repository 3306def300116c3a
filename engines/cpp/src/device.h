// The memory that engines work on, and the one stream that everything is queued on.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

namespace glm_trt
{

//! Work that was recorded once and can be queued again as a whole.
class RecordedWork
{
public:
    virtual ~RecordedWork() = default;
    virtual void launch() = 0;
};

//! A GPU, or what stands for one in tests. Copies are queued; host memory given to upload may be changed at once.
class Device
{
public:
    virtual ~Device() = default;
    virtual std::byte* allocate(size_t bytes) = 0;
    virtual void release(std::byte* memory) noexcept = 0;
    virtual void upload(std::byte* to, void const* from, size_t bytes) = 0;
    virtual void download(void* to, std::byte const* from, size_t bytes) = 0;
    virtual void copy(std::byte* to, std::byte const* from, size_t bytes) = 0;
    virtual void clear(std::byte* to, size_t bytes) = 0;
    //! Wait until all that is queued is done.
    virtual void synchronize() = 0;
    virtual size_t freeBytes() = 0;
    //! What `work` queues, recorded, not run; nothing where that cannot be.
    virtual std::unique_ptr<RecordedWork> record(std::function<void()> const& work) = 0;
    //! For the engines.
    virtual void* stream() = 0;
    //! "sm90".
    virtual std::string target() = 0;
};

//! The first GPU, through the driver, which is opened when this is called. what: needs it; for the error.
//! Throws MissingCapabilityError where there is no driver or no GPU.
std::unique_ptr<Device> openGpu(std::string const& what);

//! A piece of a device's memory.
class DeviceBuffer
{
public:
    DeviceBuffer() = default;
    DeviceBuffer(Device& device, size_t bytes)
        : mDevice(&device)
        , mData(device.allocate(bytes))
    {
    }
    DeviceBuffer(DeviceBuffer&& other) noexcept
    {
        swap(other);
    }
    DeviceBuffer& operator=(DeviceBuffer&& other) noexcept
    {
        swap(other);
        return *this;
    }
    ~DeviceBuffer()
    {
        if (mData != nullptr)
        {
            mDevice->release(mData);
        }
    }
    std::byte* data() const
    {
        return mData;
    }

private:
    void swap(DeviceBuffer& other) noexcept
    {
        std::swap(mDevice, other.mDevice);
        std::swap(mData, other.mData);
    }

    Device* mDevice{nullptr};
    std::byte* mData{nullptr};
};

} // namespace glm_trt
