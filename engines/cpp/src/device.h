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

//! A GPU, or what stands for one in tests. Work is queued on one stream; upload and download are done with the host's
//! memory when they return. Any thread may use it, one at a time, while it is current there (CurrentDevice).
class Device
{
public:
    virtual ~Device() = default;
    //! Make it current in this thread, above what was; and what was again. Throws Error.
    virtual void enter() = 0;
    virtual void leave() noexcept = 0;
    //! Throws MissingCapabilityError where the memory is used up.
    virtual std::byte* allocate(size_t bytes) = 0;
    //! From any thread, current there or not.
    virtual void release(std::byte* memory) noexcept = 0;
    //! Queued, of a copy of `from`: that may be changed or freed at once.
    virtual void upload(std::byte* to, void const* from, size_t bytes) = 0;
    //! Behind all that is queued; waits for it.
    virtual void download(void* to, std::byte const* from, size_t bytes) = 0;
    virtual void copy(std::byte* to, std::byte const* from, size_t bytes) = 0;
    virtual void clear(std::byte* to, size_t bytes) = 0;
    //! Wait until all that is queued is done.
    virtual void synchronize() = 0;
    virtual size_t freeBytes() = 0;
    //! What `work` queues, recorded, not run; nothing where the driver says that it cannot be. What else `work` throws
    //! passes.
    virtual std::unique_ptr<RecordedWork> record(std::function<void()> const& work) = 0;
    //! For the engines.
    virtual void* stream() = 0;
    //! "sm90".
    virtual std::string target() = 0;
};

//! The device is current in this thread as long as this lives.
class CurrentDevice
{
public:
    explicit CurrentDevice(Device& device)
        : mDevice(device)
    {
        mDevice.enter();
    }
    CurrentDevice(CurrentDevice const&) = delete;
    CurrentDevice& operator=(CurrentDevice const&) = delete;
    ~CurrentDevice()
    {
        mDevice.leave();
    }

private:
    Device& mDevice;
};

//! `work` with the device current, for destructors: what cannot be given back then is lost with the device.
template <typename Work>
void whileCurrent(Device& device, Work work) noexcept
{
    try
    {
        CurrentDevice const current(device);
        work();
    }
    catch (...)
    {
        // There is no one to tell.
    }
}

//! The first GPU, through the driver, which is opened when this is called. what: needs it; for the error.
//! Throws MissingCapabilityError where there is no driver or no GPU.
std::unique_ptr<Device> openGpu(std::string const& what);

//! Rounded up to 256 bytes, which TensorRT wants addresses at.
constexpr size_t alignedBytes(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

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
