// A stand-in for the CUDA driver: launches are handed to a callback, on host memory.
//
// Built with the soname libcuda.so.1 and loaded first, it is what the plugin library finds.
#include <cuda.h>

#include <cstdint>
#include <cstring>
#include <elf.h>
#include <memory>
#include <string>
#include <vector>

namespace
{

using LaunchCallback = int (*)(void const* image, uint64_t imageBytes, char const* entry, unsigned const* grid,
    unsigned threads, unsigned sharedBytes, void** parameters);

struct Function
{
    void const* image;
    std::string entry;
    unsigned long long context; //!< its id
    int sharedLimit = 48 * 1024;
};

LaunchCallback gCallback = nullptr;
int gCapability = 90;
std::vector<std::unique_ptr<Function>> gFunctions;
unsigned long long gContext = 1;

//! Bytes of an ELF image: its section headers come last.
uint64_t imageBytes(void const* image)
{
    auto const* header = static_cast<Elf64_Ehdr const*>(image);
    uint64_t const sections = header->e_shoff + uint64_t{header->e_shnum} * header->e_shentsize;
    uint64_t const segments = header->e_phoff + uint64_t{header->e_phnum} * header->e_phentsize;
    return sections > segments ? sections : segments;
}

} // namespace

extern "C"
{

void shimSet(int capability, LaunchCallback callback)
{
    gCapability = capability;
    gCallback = callback;
}

//! Destroy the context and make another, whose handle is the same and whose id is not.
void shimRenewContext()
{
    ++gContext;
}

CUresult cuCtxGetCurrent(CUcontext* context)
{
    *context = reinterpret_cast<CUcontext>(&gContext);
    return CUDA_SUCCESS;
}

CUresult cuCtxGetId(CUcontext context, unsigned long long* id)
{
    *id = gContext;
    bool const isOurs = context == nullptr || context == reinterpret_cast<CUcontext>(&gContext);
    return isOurs ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

CUresult cuCtxGetDevice(CUdevice* device)
{
    *device = 0;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice)
{
    bool const major = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
    *value = major ? gCapability / 10 : gCapability % 10;
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, void const* image)
{
    *module = static_cast<CUmodule>(const_cast<void*>(image));
    return std::memcmp(image, ELFMAG, SELFMAG) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_IMAGE;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, char const* name)
{
    gFunctions.push_back(std::make_unique<Function>(Function{module, name, gContext}));
    *function = reinterpret_cast<CUfunction>(gFunctions.back().get());
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute, int value)
{
    reinterpret_cast<Function*>(function)->sharedLimit = value;
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned gridX, unsigned gridY, unsigned gridZ, unsigned blockX,
    unsigned blockY, unsigned blockZ, unsigned sharedBytes, CUstream, void** parameters, void**)
{
    auto const& known = *reinterpret_cast<Function*>(function);
    if (known.context != gContext)
    {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (gCallback == nullptr || blockY != 1 || blockZ != 1 || static_cast<int>(sharedBytes) > known.sharedLimit)
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    unsigned const grid[3] = {gridX, gridY, gridZ};
    int const result = gCallback(
        known.image, imageBytes(known.image), known.entry.c_str(), grid, blockX, sharedBytes, parameters);
    return result == 0 ? CUDA_SUCCESS : CUDA_ERROR_LAUNCH_FAILED;
}

CUresult cuGetErrorName(CUresult result, char const** name)
{
    *name = result == CUDA_ERROR_LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED" : "CUDA_ERROR";
    return CUDA_SUCCESS;
}

} // extern "C"
