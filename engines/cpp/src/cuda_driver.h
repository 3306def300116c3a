// The CUDA driver, opened at run time, and owners of what it gives: each is given back once, in the order of its owners.
#pragma once

#include "glm_trt/errors.h"

#include <cuda.h>
#include <utility>

namespace glm_trt
{

//! The functions of libcuda.so.1 that are used.
struct Driver
{
    CUresult (*init)(unsigned);
    CUresult (*deviceGet)(CUdevice*, int);
    CUresult (*deviceGetAttribute)(int*, CUdevice_attribute, CUdevice);
    CUresult (*primaryCtxRetain)(CUcontext*, CUdevice);
    CUresult (*primaryCtxRelease)(CUdevice);
    CUresult (*ctxPushCurrent)(CUcontext);
    CUresult (*ctxPopCurrent)(CUcontext*);
    CUresult (*memGetInfo)(size_t*, size_t*);
    CUresult (*memAlloc)(CUdeviceptr*, size_t);
    CUresult (*memFree)(CUdeviceptr);
    CUresult (*memHostAlloc)(void**, size_t, unsigned);
    CUresult (*memFreeHost)(void*);
    CUresult (*memcpyHtoD)(CUdeviceptr, void const*, size_t, CUstream);
    CUresult (*memcpyDtoH)(void*, CUdeviceptr, size_t, CUstream);
    CUresult (*memcpyDtoD)(CUdeviceptr, CUdeviceptr, size_t, CUstream);
    CUresult (*memset)(CUdeviceptr, unsigned char, size_t, CUstream);
    CUresult (*streamCreate)(CUstream*, unsigned);
    CUresult (*streamDestroy)(CUstream);
    CUresult (*streamSynchronize)(CUstream);
    CUresult (*eventCreate)(CUevent*, unsigned);
    CUresult (*eventDestroy)(CUevent);
    CUresult (*eventRecord)(CUevent, CUstream);
    CUresult (*eventSynchronize)(CUevent);
    CUresult (*streamBeginCapture)(CUstream, CUstreamCaptureMode);
    CUresult (*streamEndCapture)(CUstream, CUgraph*);
    CUresult (*graphInstantiate)(CUgraphExec*, CUgraph, unsigned long long);
    CUresult (*graphLaunch)(CUgraphExec, CUstream);
    CUresult (*graphDestroy)(CUgraph);
    CUresult (*graphExecDestroy)(CUgraphExec);
    CUresult (*getErrorName)(CUresult, char const**);

    //! what: needs it; for the error. Throws MissingCapabilityError where there is no driver, or an old one.
    explicit Driver(std::string const& what);

    //! "CUDA_ERROR_INVALID_VALUE"
    std::string nameOf(CUresult result) const;
    //! Throws MissingCapabilityError if memory is used up, Error if something else is wrong.
    void check(char const* call, CUresult result) const;
};

//! A driver's object of type T. Destroyed while its context is current.
template <typename T, CUresult (*Driver::*Destroy)(T)>
class Owner
{
public:
    Owner(Driver const& driver, T object)
        : mDriver(&driver)
        , mObject(object)
    {
    }
    Owner(Owner&& other) noexcept
        : mDriver(other.mDriver)
        , mObject(std::exchange(other.mObject, T{}))
    {
    }
    Owner& operator=(Owner&&) = delete;
    ~Owner()
    {
        if (mObject != T{})
        {
            (mDriver->*Destroy)(mObject);
        }
    }
    T get() const
    {
        return mObject;
    }

private:
    Driver const* mDriver;
    T mObject;
};

using OwnedStream = Owner<CUstream, &Driver::streamDestroy>;
using OwnedEvent = Owner<CUevent, &Driver::eventDestroy>;
using OwnedGraph = Owner<CUgraph, &Driver::graphDestroy>;
using OwnedGraphExec = Owner<CUgraphExec, &Driver::graphExecDestroy>;
using PinnedMemory = Owner<void*, &Driver::memFreeHost>;

//! The first device's primary context, retained.
class PrimaryContext
{
public:
    //! what: needs it; for the error. Throws MissingCapabilityError where there is no device.
    PrimaryContext(Driver const& driver, std::string const& what);
    PrimaryContext(PrimaryContext const&) = delete;
    PrimaryContext& operator=(PrimaryContext const&) = delete;
    ~PrimaryContext();
    void enter() const;
    void leave() const noexcept;
    CUdevice device() const
    {
        return mDevice;
    }

private:
    Driver const& mDriver;
    CUdevice mDevice{0};
    CUcontext mContext{nullptr};
};

} // namespace glm_trt
