// Initialization, devices, primary and current contexts.
#include "context.h"
#include "limits.h"
#include "memory.h"
#include "streams.h"

#include <cstring>

using namespace stand_in;

STAND_IN_EXPORT CUresult cuInit(unsigned flags)
{
    Lock const held(lock());
    if (flags != 0)
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    initialise();
    return CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuDriverGetVersion(int* version)
{
    *version = 13000;
    return CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuDeviceGetCount(int* count)
{
    BEGIN("cuDeviceGetCount")
    *count = 1;
    return CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal)
{
    BEGIN("cuDeviceGet")
    *device = 0;
    return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

STAND_IN_EXPORT CUresult cuDeviceGetName(char* name, int length, CUdevice)
{
    BEGIN("cuDeviceGetName")
    std::strncpy(name, ("stand-in sm" + std::to_string(settings().capability)).c_str(), static_cast<size_t>(length));
    return CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice)
{
    BEGIN("cuDeviceGetUuid")
    std::memset(uuid, 0x5E, sizeof *uuid);
    return CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice)
{
    BEGIN("cuDeviceTotalMem")
    *bytes = settings().memory;
    return CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device)
{
    BEGIN("cuDeviceGetAttribute")
    if (device != 0)
    {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    int const capability = settings().capability;
    switch (attribute)
    {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = capability / 10; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = capability % 10; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = kSharedWithoutAsking; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = limitsOf(capability)->sharedOptIn; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
        *value = limitsOf(capability)->sharedOptIn + 1024;
        break;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: *value = kThreadsOfBlock; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: *value = 64; break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: *value = static_cast<int>(kGrid[0]); break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y: *value = static_cast<int>(kGrid[1]); break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: *value = static_cast<int>(kGrid[2]); break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 108; break;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS: *value = 1; break;
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device)
{
    BEGIN("cuDevicePrimaryCtxRetain")
    return device == 0 ? retainPrimary(context) : CUDA_ERROR_INVALID_DEVICE;
}

STAND_IN_EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice)
{
    Lock const held(lock());
    return isInitialised() ? releasePrimary() : CUDA_ERROR_NOT_INITIALIZED;
}

STAND_IN_EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* isActive)
{
    BEGIN("cuDevicePrimaryCtxGetState")
    *flags = 0;
    *isActive = isRetained() ? 1 : 0;
    return CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuCtxSetCurrent(CUcontext context)
{
    BEGIN("cuCtxSetCurrent")
    return setCurrent(context);
}

STAND_IN_EXPORT CUresult cuCtxGetCurrent(CUcontext* context)
{
    BEGIN("cuCtxGetCurrent")
    *context = current();
    return CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context)
{
    BEGIN("cuCtxPushCurrent")
    return push(context);
}

STAND_IN_EXPORT CUresult cuCtxPopCurrent_v2(CUcontext* context)
{
    Lock const held(lock());
    return isInitialised() ? pop(context) : CUDA_ERROR_NOT_INITIALIZED;
}

STAND_IN_EXPORT CUresult cuCtxGetId(CUcontext context, unsigned long long* id)
{
    BEGIN("cuCtxGetId")
    return contextId(context, id);
}

STAND_IN_EXPORT CUresult cuCtxGetDevice(CUdevice* device)
{
    BEGIN_IN_CONTEXT("cuCtxGetDevice")
    *device = 0;
    return CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuCtxSynchronize()
{
    BEGIN_IN_CONTEXT("cuCtxSynchronize")
    if (isForbidden(true))
    {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    runAll();
    return faultSoFar();
}
