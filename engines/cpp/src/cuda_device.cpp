// The first GPU through the CUDA driver, which is opened at run time: the library loads where there is none.
#include "device.h"
#include "glm_trt/errors.h"

#include <cuda.h>
#include <dlfcn.h>

namespace glm_trt
{
namespace
{

//! The functions of libcuda.so.1 that are used.
struct Driver
{
    CUresult (*init)(unsigned);
    CUresult (*deviceGet)(CUdevice*, int);
    CUresult (*deviceGetAttribute)(int*, CUdevice_attribute, CUdevice);
    CUresult (*primaryCtxRetain)(CUcontext*, CUdevice);
    CUresult (*primaryCtxRelease)(CUdevice);
    CUresult (*ctxSetCurrent)(CUcontext);
    CUresult (*memGetInfo)(size_t*, size_t*);
    CUresult (*memAlloc)(CUdeviceptr*, size_t);
    CUresult (*memFree)(CUdeviceptr);
    CUresult (*memcpyHtoD)(CUdeviceptr, void const*, size_t, CUstream);
    CUresult (*memcpyDtoH)(void*, CUdeviceptr, size_t, CUstream);
    CUresult (*memcpyDtoD)(CUdeviceptr, CUdeviceptr, size_t, CUstream);
    CUresult (*memset)(CUdeviceptr, unsigned char, size_t, CUstream);
    CUresult (*streamCreate)(CUstream*, unsigned);
    CUresult (*streamDestroy)(CUstream);
    CUresult (*streamSynchronize)(CUstream);
    CUresult (*streamBeginCapture)(CUstream, CUstreamCaptureMode);
    CUresult (*streamEndCapture)(CUstream, CUgraph*);
    CUresult (*graphInstantiate)(CUgraphExec*, CUgraph, unsigned long long);
    CUresult (*graphLaunch)(CUgraphExec, CUstream);
    CUresult (*graphDestroy)(CUgraph);
    CUresult (*graphExecDestroy)(CUgraphExec);
    CUresult (*getErrorName)(CUresult, char const**);

    explicit Driver(std::string const& what)
    {
        void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr)
        {
            throw MissingCapabilityError(
                what + " needs a GPU: no NVIDIA driver (libcuda.so.1) is on this machine");
        }
        find(library, "cuInit", init);
        find(library, "cuDeviceGet", deviceGet);
        find(library, "cuDeviceGetAttribute", deviceGetAttribute);
        find(library, "cuDevicePrimaryCtxRetain", primaryCtxRetain);
        find(library, "cuDevicePrimaryCtxRelease_v2", primaryCtxRelease);
        find(library, "cuCtxSetCurrent", ctxSetCurrent);
        find(library, "cuMemGetInfo_v2", memGetInfo);
        find(library, "cuMemAlloc_v2", memAlloc);
        find(library, "cuMemFree_v2", memFree);
        find(library, "cuMemcpyHtoDAsync_v2", memcpyHtoD);
        find(library, "cuMemcpyDtoHAsync_v2", memcpyDtoH);
        find(library, "cuMemcpyDtoDAsync_v2", memcpyDtoD);
        find(library, "cuMemsetD8Async", memset);
        find(library, "cuStreamCreate", streamCreate);
        find(library, "cuStreamDestroy_v2", streamDestroy);
        find(library, "cuStreamSynchronize", streamSynchronize);
        find(library, "cuStreamBeginCapture_v2", streamBeginCapture);
        find(library, "cuStreamEndCapture", streamEndCapture);
        find(library, "cuGraphInstantiateWithFlags", graphInstantiate);
        find(library, "cuGraphLaunch", graphLaunch);
        find(library, "cuGraphDestroy", graphDestroy);
        find(library, "cuGraphExecDestroy", graphExecDestroy);
        find(library, "cuGetErrorName", getErrorName);
    }

    void check(char const* call, CUresult result) const
    {
        if (result != CUDA_SUCCESS)
        {
            char const* name = nullptr;
            getErrorName(result, &name);
            throw Error(std::string(call) + ": " + (name ? name : "CUDA error " + std::to_string(result)));
        }
    }

private:
    template <typename Function>
    void find(void* library, char const* name, Function& function)
    {
        function = reinterpret_cast<Function>(dlsym(library, name));
        if (function == nullptr)
        {
            throw MissingCapabilityError(std::string("the NVIDIA driver is too old: it lacks ") + name);
        }
    }
};

CUdeviceptr address(std::byte const* memory)
{
    return reinterpret_cast<CUdeviceptr>(memory);
}

class CudaGraph : public RecordedWork
{
public:
    CudaGraph(Driver const& driver, CUstream stream, CUgraphExec graph)
        : mDriver(driver)
        , mStream(stream)
        , mGraph(graph)
    {
    }
    ~CudaGraph() override
    {
        mDriver.graphExecDestroy(mGraph);
    }
    void launch() override
    {
        mDriver.check("cuGraphLaunch", mDriver.graphLaunch(mGraph, mStream));
    }

private:
    Driver const& mDriver;
    CUstream mStream;
    CUgraphExec mGraph;
};

class CudaDevice : public Device
{
public:
    explicit CudaDevice(std::string const& what)
        : mDriver(what)
    {
        if (CUresult const result = mDriver.init(0); result != CUDA_SUCCESS || mDriver.deviceGet(&mDevice, 0) != 0)
        {
            throw MissingCapabilityError(what + " needs a GPU: the NVIDIA driver finds none (CUDA error "
                + std::to_string(result) + ")");
        }
        CUcontext context = nullptr;
        mDriver.check("cuDevicePrimaryCtxRetain", mDriver.primaryCtxRetain(&context, mDevice));
        mDriver.check("cuCtxSetCurrent", mDriver.ctxSetCurrent(context));
        mDriver.check("cuStreamCreate", mDriver.streamCreate(&mStream, CU_STREAM_NON_BLOCKING));
    }
    ~CudaDevice() override
    {
        if (mStream != nullptr)
        {
            mDriver.streamDestroy(mStream);
        }
        mDriver.primaryCtxRelease(mDevice);
    }

    std::byte* allocate(size_t bytes) override
    {
        CUdeviceptr memory = 0;
        mDriver.check("cuMemAlloc", mDriver.memAlloc(&memory, bytes ? bytes : 1));
        return reinterpret_cast<std::byte*>(memory);
    }
    void release(std::byte* memory) noexcept override
    {
        mDriver.memFree(address(memory));
    }
    void upload(std::byte* to, void const* from, size_t bytes) override
    {
        // From pageable memory the driver copies what it needs before it returns.
        mDriver.check("cuMemcpyHtoDAsync", mDriver.memcpyHtoD(address(to), from, bytes, mStream));
    }
    void download(void* to, std::byte const* from, size_t bytes) override
    {
        mDriver.check("cuMemcpyDtoHAsync", mDriver.memcpyDtoH(to, address(from), bytes, mStream));
    }
    void copy(std::byte* to, std::byte const* from, size_t bytes) override
    {
        mDriver.check("cuMemcpyDtoDAsync", mDriver.memcpyDtoD(address(to), address(from), bytes, mStream));
    }
    void clear(std::byte* to, size_t bytes) override
    {
        mDriver.check("cuMemsetD8Async", mDriver.memset(address(to), 0, bytes, mStream));
    }
    void synchronize() override
    {
        mDriver.check("cuStreamSynchronize", mDriver.streamSynchronize(mStream));
    }
    size_t freeBytes() override
    {
        size_t free = 0;
        size_t total = 0;
        mDriver.check("cuMemGetInfo", mDriver.memGetInfo(&free, &total));
        return free;
    }
    void* stream() override
    {
        return mStream;
    }
    std::string target() override
    {
        return "sm" + std::to_string(attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR))
            + std::to_string(attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR));
    }

    std::unique_ptr<RecordedWork> record(std::function<void()> const& work) override
    {
        CUgraph graph = nullptr;
        if (mDriver.streamBeginCapture(mStream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) != CUDA_SUCCESS)
        {
            return nullptr;
        }
        bool good = true;
        try
        {
            work();
        }
        catch (Error const&)
        {
            good = false; // something that cannot be captured; the capture must be ended all the same
        }
        CUgraphExec executable = nullptr;
        good = mDriver.streamEndCapture(mStream, &graph) == CUDA_SUCCESS && good
            && mDriver.graphInstantiate(&executable, graph, 0) == CUDA_SUCCESS;
        if (graph != nullptr)
        {
            mDriver.graphDestroy(graph);
        }
        return good ? std::make_unique<CudaGraph>(mDriver, mStream, executable) : nullptr;
    }

private:
    int attribute(CUdevice_attribute name)
    {
        int value = 0;
        mDriver.check("cuDeviceGetAttribute", mDriver.deviceGetAttribute(&value, name, mDevice));
        return value;
    }

    Driver mDriver;
    CUdevice mDevice{0};
    CUstream mStream{nullptr};
};

} // namespace

std::unique_ptr<Device> openGpu(std::string const& what)
{
    return std::make_unique<CudaDevice>(what);
}

} // namespace glm_trt
