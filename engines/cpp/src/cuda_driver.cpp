#include "cuda_driver.h"

#include <dlfcn.h>

namespace glm_trt
{
namespace
{

template <typename Function>
void find(void* library, char const* name, Function& function)
{
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr)
    {
        throw MissingCapabilityError(std::string("the NVIDIA driver is too old: it lacks ") + name);
    }
}

} // namespace

Driver::Driver(std::string const& what)
{
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
    {
        throw MissingCapabilityError(what + " needs a GPU: no NVIDIA driver (libcuda.so.1) is on this machine");
    }
    find(library, "cuInit", init);
    find(library, "cuDeviceGet", deviceGet);
    find(library, "cuDeviceGetAttribute", deviceGetAttribute);
    find(library, "cuDevicePrimaryCtxRetain", primaryCtxRetain);
    find(library, "cuDevicePrimaryCtxRelease_v2", primaryCtxRelease);
    find(library, "cuCtxPushCurrent_v2", ctxPushCurrent);
    find(library, "cuCtxPopCurrent_v2", ctxPopCurrent);
    find(library, "cuMemGetInfo_v2", memGetInfo);
    find(library, "cuMemAlloc_v2", memAlloc);
    find(library, "cuMemFree_v2", memFree);
    find(library, "cuMemHostAlloc", memHostAlloc);
    find(library, "cuMemFreeHost", memFreeHost);
    find(library, "cuMemcpyHtoDAsync_v2", memcpyHtoD);
    find(library, "cuMemcpyDtoHAsync_v2", memcpyDtoH);
    find(library, "cuMemcpyDtoDAsync_v2", memcpyDtoD);
    find(library, "cuMemsetD8Async", memset);
    find(library, "cuStreamCreate", streamCreate);
    find(library, "cuStreamDestroy_v2", streamDestroy);
    find(library, "cuStreamSynchronize", streamSynchronize);
    find(library, "cuEventCreate", eventCreate);
    find(library, "cuEventDestroy_v2", eventDestroy);
    find(library, "cuEventRecord", eventRecord);
    find(library, "cuEventSynchronize", eventSynchronize);
    find(library, "cuStreamBeginCapture_v2", streamBeginCapture);
    find(library, "cuStreamEndCapture", streamEndCapture);
    find(library, "cuGraphInstantiateWithFlags", graphInstantiate);
    find(library, "cuGraphLaunch", graphLaunch);
    find(library, "cuGraphDestroy", graphDestroy);
    find(library, "cuGraphExecDestroy", graphExecDestroy);
    find(library, "cuGetErrorName", getErrorName);
}

std::string Driver::nameOf(CUresult result) const
{
    char const* name = nullptr;
    getErrorName(result, &name);
    return name != nullptr ? name : "CUDA error " + std::to_string(result);
}

void Driver::check(char const* call, CUresult result) const
{
    if (result == CUDA_ERROR_OUT_OF_MEMORY)
    {
        throw MissingCapabilityError(
            std::string("the GPU has too little memory: ") + call + ": " + nameOf(result));
    }
    if (result != CUDA_SUCCESS)
    {
        throw Error(std::string(call) + ": " + nameOf(result));
    }
}

PrimaryContext::PrimaryContext(Driver const& driver, std::string const& what)
    : mDriver(driver)
{
    CUresult result = mDriver.init(0);
    if (result == CUDA_SUCCESS)
    {
        result = mDriver.deviceGet(&mDevice, 0);
    }
    if (result != CUDA_SUCCESS)
    {
        throw MissingCapabilityError(
            what + " needs a GPU: the NVIDIA driver finds none (" + mDriver.nameOf(result) + ")");
    }
    mDriver.check("cuDevicePrimaryCtxRetain", mDriver.primaryCtxRetain(&mContext, mDevice));
}

PrimaryContext::~PrimaryContext()
{
    mDriver.primaryCtxRelease(mDevice);
}

void PrimaryContext::enter() const
{
    mDriver.check("cuCtxPushCurrent", mDriver.ctxPushCurrent(mContext));
}

void PrimaryContext::leave() const noexcept
{
    CUcontext was = nullptr;
    mDriver.ctxPopCurrent(&was);
}

} // namespace glm_trt
