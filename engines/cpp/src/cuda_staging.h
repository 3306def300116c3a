// Copies between the host's pageable memory and the device by way of pinned memory.
//
// An asynchronous copy reads or writes the host's memory when the stream reaches it. From pageable memory the driver
// may copy beforehand, or not (the CUDA Driver API's "API synchronization behavior"); from pinned memory it never does.
// So what is copied lies in pinned slots of our own until the stream has passed it.
#pragma once

#include "cuda_driver.h"

#include <cstddef>
#include <vector>

namespace glm_trt
{

class Staging
{
public:
    //! In the current context.
    Staging(Driver const& driver, CUstream stream);

    void upload(CUdeviceptr to, void const* from, size_t bytes);
    void download(void* to, CUdeviceptr from, size_t bytes);

private:
    struct Slot
    {
        PinnedMemory memory;
        OwnedEvent event; // behind the last copy from or to it
        bool isUsed{false};
        void* to{nullptr}; // where the host wants what is in it
        size_t bytes{0};
    };

    Slot& next();
    void queued(Slot& slot);
    void settle(Slot& slot);

    Driver const& mDriver;
    CUstream mStream;
    std::vector<Slot> mSlots;
    size_t mNext{0};
};

} // namespace glm_trt
