// Device memory, pinned host memory, copies.
#include "context.h"
#include "memory.h"
#include "streams.h"

#include <cstring>

using namespace stand_in;

namespace
{

CUresult const kForbidden = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;

std::string sized(size_t bytes, uint64_t address)
{
    return std::to_string(bytes) + " bytes at " + hex(address);
}

//! Whether a copy's end on the host is still there when the stream comes to it.
bool isHostThere(void const* address, size_t bytes, HostKind before, char const* call)
{
    HostKind const now = hostKind(address, bytes);
    if (now != before || !isMapped(address, bytes))
    {
        violated("host-memory-gone",
            std::string(call) + ": " + sized(bytes, reinterpret_cast<uint64_t>(address))
                + " were given back before the stream came to them");
        return false;
    }
    return true;
}

//! The host's end of a copy, when it is queued.
CUresult checkHost(void const* address, size_t bytes, CUstream handle, char const* call, HostKind& kind)
{
    kind = hostKind(address, bytes);
    std::string const what = std::string(call) + ": " + sized(bytes, reinterpret_cast<uint64_t>(address));
    if (kind == HostKind::kFREED || kind == HostKind::kBEYOND || !isMapped(address, bytes))
    {
        violated("host-memory", what + (kind == HostKind::kBEYOND ? " end beyond pinned memory" : " are not there"));
        return CUDA_ERROR_INVALID_VALUE;
    }
    auto const found = streams().live().find(reinterpret_cast<uint64_t>(handle));
    if (kind == HostKind::kPAGEABLE && found != streams().live().end() && found->second->capture != nullptr)
    {
        violated("pageable-while-capturing", what);
    }
    return CUDA_SUCCESS;
}

CUresult copyFromHost(CUdeviceptr to, void const* from, size_t bytes, CUstream stream, char const* call)
{
    HostKind kind{};
    if (CUresult const result = checkHost(from, bytes, stream, call, kind); result != CUDA_SUCCESS)
    {
        return result;
    }
    if (!holds(to, bytes, call))
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return queue(stream, call, {sized(bytes, to), [=] {
                                    if (holds(to, bytes, call) && isHostThere(from, bytes, kind, call))
                                    {
                                        std::memcpy(reinterpret_cast<void*>(to), from, bytes);
                                        return;
                                    }
                                    fault(CUDA_ERROR_LAUNCH_FAILED);
                                }});
}

CUresult copyToHost(void* to, CUdeviceptr from, size_t bytes, CUstream stream, char const* call)
{
    HostKind kind{};
    if (CUresult const result = checkHost(to, bytes, stream, call, kind); result != CUDA_SUCCESS)
    {
        return result;
    }
    if (!holds(from, bytes, call))
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return queue(stream, call, {sized(bytes, from), [=] {
                                    if (holds(from, bytes, call) && isHostThere(to, bytes, kind, call))
                                    {
                                        std::memcpy(to, reinterpret_cast<void*>(from), bytes);
                                        return;
                                    }
                                    fault(CUDA_ERROR_LAUNCH_FAILED);
                                }});
}

CUresult copyWithin(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream, char const* call)
{
    if (!holds(to, bytes, call) || !holds(from, bytes, call))
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (bytes != 0 && to < from + bytes && from < to + bytes)
    {
        violated("overlapping-copy", std::string(call) + ": " + sized(bytes, from) + " to " + hex(to));
        return CUDA_ERROR_INVALID_VALUE;
    }
    return queue(stream, call, {sized(bytes, from), [=] {
                                    if (holds(to, bytes, call) && holds(from, bytes, call))
                                    {
                                        std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
                                        return;
                                    }
                                    fault(CUDA_ERROR_LAUNCH_FAILED);
                                }});
}

template <typename Value>
CUresult fill(CUdeviceptr to, Value value, size_t count, CUstream stream, char const* call)
{
    size_t const bytes = count * sizeof value;
    if (to % sizeof value != 0 || !holds(to, bytes, call))
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return queue(stream, call, {sized(bytes, to), [=] {
                                    if (!holds(to, bytes, call))
                                    {
                                        fault(CUDA_ERROR_LAUNCH_FAILED);
                                        return;
                                    }
                                    for (size_t i = 0; i < count; ++i)
                                    {
                                        std::memcpy(reinterpret_cast<char*>(to) + i * sizeof value, &value, sizeof value);
                                    }
                                }});
}

//! Wait for what a call without "Async" queued on the legacy stream.
CUresult waited(CUresult queued)
{
    if (queued == CUDA_SUCCESS)
    {
        runUntil({{legacyStream(), legacyStream()->queued()}});
    }
    return queued == CUDA_SUCCESS ? faultSoFar() : queued;
}

bool isDevicePointer(CUdeviceptr address)
{
    return isInArena(address);
}

} // namespace

STAND_IN_EXPORT CUresult cuMemGetInfo_v2(size_t* left, size_t* total)
{
    BEGIN_IN_CONTEXT("cuMemGetInfo")
    *left = bytesLeft();
    *total = settings().memory;
    return CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes)
{
    BEGIN_IN_CONTEXT("cuMemAlloc")
    if (isForbidden())
    {
        return kForbidden;
    }
    if (isDevice())
    {
        violated("allocation-in-device-work", std::to_string(bytes) + " bytes");
        return CUDA_ERROR_NOT_PERMITTED;
    }
    if (bytes == 0)
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUdeviceptr const made = allocate(bytes);
    *address = made != 0 ? made : *address;
    return made != 0 ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

STAND_IN_EXPORT CUresult cuMemFree_v2(CUdeviceptr address)
{
    GIVE_BACK("cuMemFree")
    if (isForbidden())
    {
        return kForbidden;
    }
    runAll(); // as a real one waits
    if (!release(address))
    {
        violated("freed-twice", "cuMemFree: " + describe(address));
        return CUDA_ERROR_INVALID_VALUE;
    }
    return faultSoFar();
}

STAND_IN_EXPORT CUresult cuMemHostAlloc(void** address, size_t bytes, unsigned)
{
    BEGIN_IN_CONTEXT("cuMemHostAlloc")
    if (isForbidden())
    {
        return kForbidden;
    }
    *address = bytes != 0 ? allocatePinned(bytes) : nullptr;
    return *address != nullptr ? CUDA_SUCCESS : bytes == 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_OUT_OF_MEMORY;
}

STAND_IN_EXPORT CUresult cuMemAllocHost_v2(void** address, size_t bytes)
{
    return cuMemHostAlloc(address, bytes, 0);
}

STAND_IN_EXPORT CUresult cuMemFreeHost(void* address)
{
    GIVE_BACK("cuMemFreeHost")
    if (isForbidden())
    {
        return kForbidden;
    }
    runAll(); // as a real one waits
    if (!releasePinned(address))
    {
        violated("freed-twice", "cuMemFreeHost: " + hex(reinterpret_cast<uint64_t>(address)));
        return CUDA_ERROR_INVALID_VALUE;
    }
    return faultSoFar();
}

STAND_IN_EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, void const* from, size_t bytes, CUstream stream)
{
    BEGIN_IN_CONTEXT("cuMemcpyHtoDAsync")
    return copyFromHost(to, from, bytes, stream, "cuMemcpyHtoDAsync");
}

STAND_IN_EXPORT CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    BEGIN_IN_CONTEXT("cuMemcpyDtoHAsync")
    return copyToHost(to, from, bytes, stream, "cuMemcpyDtoHAsync");
}

STAND_IN_EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    BEGIN_IN_CONTEXT("cuMemcpyDtoDAsync")
    return copyWithin(to, from, bytes, stream, "cuMemcpyDtoDAsync");
}

STAND_IN_EXPORT CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    BEGIN_IN_CONTEXT("cuMemcpyAsync")
    if (isDevicePointer(to) && isDevicePointer(from))
    {
        return copyWithin(to, from, bytes, stream, "cuMemcpyAsync");
    }
    return isDevicePointer(to) ? copyFromHost(to, reinterpret_cast<void*>(from), bytes, stream, "cuMemcpyAsync")
                               : copyToHost(reinterpret_cast<void*>(to), from, bytes, stream, "cuMemcpyAsync");
}

STAND_IN_EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr to, void const* from, size_t bytes)
{
    BEGIN_IN_CONTEXT("cuMemcpyHtoD")
    return waited(copyFromHost(to, from, bytes, nullptr, "cuMemcpyHtoD"));
}

STAND_IN_EXPORT CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes)
{
    BEGIN_IN_CONTEXT("cuMemcpyDtoH")
    return waited(copyToHost(to, from, bytes, nullptr, "cuMemcpyDtoH"));
}

STAND_IN_EXPORT CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
    BEGIN_IN_CONTEXT("cuMemcpyDtoD")
    return copyWithin(to, from, bytes, nullptr, "cuMemcpyDtoD"); // it does not wait
}

STAND_IN_EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream)
{
    BEGIN_IN_CONTEXT("cuMemsetD8Async")
    return fill(to, value, count, stream, "cuMemsetD8Async");
}

STAND_IN_EXPORT CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream)
{
    BEGIN_IN_CONTEXT("cuMemsetD32Async")
    return fill(to, value, count, stream, "cuMemsetD32Async");
}

STAND_IN_EXPORT CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count)
{
    BEGIN_IN_CONTEXT("cuMemsetD8")
    return fill(to, value, count, nullptr, "cuMemsetD8"); // asynchronous all the same, where the memory is a device's
}

STAND_IN_EXPORT CUresult cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t count)
{
    BEGIN_IN_CONTEXT("cuMemsetD32")
    return fill(to, value, count, nullptr, "cuMemsetD32");
}

STAND_IN_EXPORT CUresult cuPointerGetAttribute(void* data, CUpointer_attribute attribute, CUdeviceptr address)
{
    BEGIN_IN_CONTEXT("cuPointerGetAttribute")
    Range const* const piece = holder(address, 1);
    bool const isPinned = hostKind(reinterpret_cast<void*>(address), 1) == HostKind::kPINNED;
    if (piece == nullptr && !isPinned)
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    switch (attribute)
    {
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *static_cast<unsigned*>(data) = piece != nullptr ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *static_cast<int*>(data) = 0; return CUDA_SUCCESS;
    default: return CUDA_ERROR_NOT_SUPPORTED;
    }
}
