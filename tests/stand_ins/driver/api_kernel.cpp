// Modules, libraries, functions, launches.
#include "context.h"
#include "kernels.h"
#include "limits.h"
#include "memory.h"

using namespace stand_in;

namespace
{

CUresult attributeOf(int* value, CUfunction_attribute attribute, Function const& function)
{
    switch (attribute)
    {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = kThreadsOfBlock; break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = static_cast<int>(function.entry().sharedBytes); break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = function.dynamicShared; break;
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}

CUresult setAttribute(Function& function, CUfunction_attribute attribute, int value)
{
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
    {
        return CUDA_SUCCESS;
    }
    int const most = limitsOf(settings().capability)->sharedOptIn - static_cast<int>(function.entry().sharedBytes);
    if (value < 0 || value > most)
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    int const always = kSharedWithoutAsking - static_cast<int>(function.entry().sharedBytes);
    function.dynamicShared = value > always ? value : always;
    return CUDA_SUCCESS;
}

CUresult load(CUmodule* handle, void const* image)
{
    std::shared_ptr<Module> module;
    CUresult const result = loadModule(image, aliveId(), module);
    if (result == CUDA_SUCCESS)
    {
        *handle = modules().add<CUmodule>(module);
    }
    return result;
}

template <typename Handle>
CUresult unload(Handle handle, char const* call)
{
    auto const module = modules().remove(handle, call);
    if (module == nullptr)
    {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    for (auto const& [name, function] : module->functions)
    {
        functions().remove(reinterpret_cast<CUfunction>(function), call);
    }
    return faultSoFar();
}

template <typename Module, typename Kernel>
CUresult get(Kernel* handle, Module of, char const* name, char const* call)
{
    auto const module = modules().find(of, call);
    uint64_t found = 0;
    CUresult const result = module == nullptr ? CUDA_ERROR_INVALID_HANDLE : getFunction(*module, name, found);
    *handle = reinterpret_cast<Kernel>(found);
    return result;
}

} // namespace

STAND_IN_EXPORT CUresult cuModuleLoadData(CUmodule* module, void const* image)
{
    BEGIN_IN_CONTEXT("cuModuleLoadData")
    return load(module, image);
}

STAND_IN_EXPORT CUresult cuModuleLoadDataEx(
    CUmodule* module, void const* image, unsigned, CUjit_option*, void**)
{
    BEGIN_IN_CONTEXT("cuModuleLoadDataEx")
    return load(module, image);
}

STAND_IN_EXPORT CUresult cuModuleUnload(CUmodule module)
{
    GIVE_BACK("cuModuleUnload")
    return unload(module, "cuModuleUnload");
}

STAND_IN_EXPORT CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, char const* name)
{
    BEGIN_IN_CONTEXT("cuModuleGetFunction")
    return get(function, module, name, "cuModuleGetFunction");
}

STAND_IN_EXPORT CUresult cuLibraryLoadData(CUlibrary* library, void const* image, CUjit_option*, void**, unsigned,
    CUlibraryOption*, void**, unsigned)
{
    BEGIN("cuLibraryLoadData")
    std::shared_ptr<Module> module;
    CUresult const result = loadModule(image, 0, module);
    if (result == CUDA_SUCCESS)
    {
        *library = modules().add<CUlibrary>(module);
    }
    return result;
}

STAND_IN_EXPORT CUresult cuLibraryUnload(CUlibrary library)
{
    Lock const held(lock());
    return unload(library, "cuLibraryUnload");
}

STAND_IN_EXPORT CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary library, char const* name)
{
    BEGIN("cuLibraryGetKernel")
    return get(kernel, library, name, "cuLibraryGetKernel");
}

STAND_IN_EXPORT CUresult cuKernelGetFunction(CUfunction* function, CUkernel kernel)
{
    BEGIN_IN_CONTEXT("cuKernelGetFunction")
    *function = reinterpret_cast<CUfunction>(kernel);
    return functions().find(kernel, "cuKernelGetFunction") ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

STAND_IN_EXPORT CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel, CUdevice)
{
    BEGIN("cuKernelSetAttribute")
    auto const found = functions().find(kernel, "cuKernelSetAttribute");
    return found ? setAttribute(*found, attribute, value) : CUDA_ERROR_INVALID_HANDLE;
}

STAND_IN_EXPORT CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value)
{
    BEGIN_IN_CONTEXT("cuFuncSetAttribute")
    auto const found = functions().find(function, "cuFuncSetAttribute");
    return found ? setAttribute(*found, attribute, value) : CUDA_ERROR_INVALID_HANDLE;
}

STAND_IN_EXPORT CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function)
{
    BEGIN_IN_CONTEXT("cuFuncGetAttribute")
    auto const found = functions().find(function, "cuFuncGetAttribute");
    return found ? attributeOf(value, attribute, *found) : CUDA_ERROR_INVALID_HANDLE;
}

STAND_IN_EXPORT CUresult cuFuncGetParamInfo(CUfunction function, size_t index, size_t* offset, size_t* bytes)
{
    BEGIN_IN_CONTEXT("cuFuncGetParamInfo")
    auto const found = functions().find(function, "cuFuncGetParamInfo");
    if (found == nullptr || index >= found->entry().parameters.size())
    {
        return found == nullptr ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    }
    *offset = found->entry().parameters[index].offset;
    if (bytes != nullptr)
    {
        *bytes = found->entry().parameters[index].bytes;
    }
    return CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned gridX, unsigned gridY, unsigned gridZ,
    unsigned blockX, unsigned blockY, unsigned blockZ, unsigned sharedBytes, CUstream stream, void** parameters,
    void** extra)
{
    BEGIN_IN_CONTEXT("cuLaunchKernel")
    if (extra != nullptr)
    {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    return launch(function, {gridX, gridY, gridZ}, {blockX, blockY, blockZ}, sharedBytes, stream, parameters);
}
