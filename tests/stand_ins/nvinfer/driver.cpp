#include "driver.h"

#include <cuda.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

namespace stand_in
{
namespace
{

template <typename Function>
Function* driver(char const* name)
{
    static void* const library = dlopen("libcuda.so.1", RTLD_NOW);
    void* const found = library == nullptr ? nullptr : dlsym(library, name);
    if (found == nullptr)
    {
        std::fprintf(stderr, "stand-in for TensorRT: libcuda.so.1 is no stand-in: it has no %s\n", name);
        std::abort();
    }
    return reinterpret_cast<Function*>(found);
}

} // namespace

void violated(char const* rule, std::string const& what)
{
    driver<void(char const*, char const*)>("standInViolated")(rule, ("TensorRT: " + what).c_str());
}

void expectCurrent(char const* call)
{
    CUcontext context = nullptr;
    driver<CUresult(CUcontext*)>("cuCtxGetCurrent")(&context);
    if (context == nullptr)
    {
        violated("no-context", std::string(call) + " without a current context");
    }
}

bool holds(void const* address, size_t bytes)
{
    return driver<int(CUdeviceptr, size_t)>("standInHolds")(reinterpret_cast<CUdeviceptr>(address), bytes) != 0;
}

bool isCapturing(void* stream)
{
    CUstreamCaptureStatus status{};
    using Ask = CUresult(CUstream, CUstreamCaptureStatus*);
    driver<Ask>("cuStreamIsCapturing")(static_cast<CUstream>(stream), &status);
    return status != CU_STREAM_CAPTURE_STATUS_NONE;
}

void spoilCapture()
{
    CUdeviceptr memory = 0;
    driver<CUresult(CUdeviceptr*, size_t)>("cuMemAlloc_v2")(&memory, 1);
}

bool queue(void* stream, char const* what, void (*work)(void*), void (*destroy)(void*), void* data)
{
    using Queue = int(CUstream, char const*, void (*)(void*), void (*)(void*), void*);
    return driver<Queue>("standInQueue")(static_cast<CUstream>(stream), what, work, destroy, data) == 0;
}

void execute(std::string const& request)
{
    char reply[4096];
    driver<int(char const*, char*, size_t)>("standInExecute")(request.c_str(), reply, sizeof reply);
}

} // namespace stand_in
