#include "cuda_staging.h"

#include <algorithm>
#include <cstring>

namespace glm_trt
{
namespace
{

// Some slots, so that the host fills one while the device reads another; pieces are large enough for a bus's full speed.
constexpr size_t kSlots = 8;
constexpr size_t kSlotBytes = size_t{2} << 20;

PinnedMemory pinned(Driver const& driver)
{
    void* memory = nullptr;
    driver.check("cuMemHostAlloc", driver.memHostAlloc(&memory, kSlotBytes, CU_MEMHOSTALLOC_PORTABLE));
    return {driver, memory};
}

OwnedEvent event(Driver const& driver)
{
    CUevent made = nullptr;
    driver.check("cuEventCreate", driver.eventCreate(&made, CU_EVENT_DISABLE_TIMING));
    return {driver, made};
}

} // namespace

Staging::Staging(Driver const& driver, CUstream stream)
    : mDriver(driver)
    , mStream(stream)
{
    mSlots.reserve(kSlots);
    while (mSlots.size() < kSlots)
    {
        mSlots.push_back({pinned(driver), event(driver)});
    }
}

void Staging::upload(CUdeviceptr to, void const* from, size_t bytes)
{
    auto const* data = static_cast<std::byte const*>(from);
    for (size_t done = 0; done < bytes; done += kSlotBytes)
    {
        size_t const piece = std::min(bytes - done, kSlotBytes);
        Slot& slot = next();
        std::memcpy(slot.memory.get(), data + done, piece);
        mDriver.check("cuMemcpyHtoDAsync", mDriver.memcpyHtoD(to + done, slot.memory.get(), piece, mStream));
        queued(slot);
    }
}

void Staging::download(void* to, CUdeviceptr from, size_t bytes)
{
    auto* data = static_cast<std::byte*>(to);
    try
    {
        for (size_t done = 0; done < bytes; done += kSlotBytes)
        {
            Slot& slot = next();
            slot.bytes = std::min(bytes - done, kSlotBytes);
            slot.to = data + done;
            mDriver.check(
                "cuMemcpyDtoHAsync", mDriver.memcpyDtoH(slot.memory.get(), from + done, slot.bytes, mStream));
            queued(slot);
        }
        for (size_t i = 0; i < kSlots; ++i)
        {
            next();
        }
    }
    catch (...)
    {
        for (Slot& slot : mSlots)
        {
            slot.to = nullptr; // of the caller, who is told
        }
        throw;
    }
}

//! The oldest slot, free again.
Staging::Slot& Staging::next()
{
    Slot& slot = mSlots[mNext];
    mNext = (mNext + 1) % mSlots.size();
    settle(slot);
    return slot;
}

void Staging::queued(Slot& slot)
{
    slot.isUsed = true;
    mDriver.check("cuEventRecord", mDriver.eventRecord(slot.event.get(), mStream));
}

//! Wait for the slot's copy, and hand on what came.
void Staging::settle(Slot& slot)
{
    if (slot.isUsed)
    {
        mDriver.check("cuEventSynchronize", mDriver.eventSynchronize(slot.event.get()));
        slot.isUsed = false;
    }
    if (slot.to != nullptr)
    {
        std::memcpy(slot.to, slot.memory.get(), slot.bytes);
        slot.to = nullptr;
    }
}

} // namespace glm_trt
