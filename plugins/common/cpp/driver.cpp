#include "driver.h"

#include "operators.h"

#include <cuda.h>
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <utility>

namespace glm_trt
{
namespace
{

//! The functions of libcuda.so.1 that are used; `problem` is not empty where they are not there.
struct Driver
{
    CUresult (*ctxGetId)(CUcontext, unsigned long long*);
    CUresult (*ctxGetDevice)(CUdevice*);
    CUresult (*deviceGetAttribute)(int*, CUdevice_attribute, CUdevice);
    CUresult (*moduleLoadData)(CUmodule*, void const*);
    CUresult (*moduleGetFunction)(CUfunction*, CUmodule, char const*);
    CUresult (*funcSetAttribute)(CUfunction, CUfunction_attribute, int);
    CUresult (*launch)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,
        void**, void**);
    CUresult (*getErrorName)(CUresult, char const**);
    Error problem;

    Driver()
    {
        void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr)
        {
            problem = "the CUDA driver is missing: libcuda.so.1 cannot be loaded";
            return;
        }
        find(library, "cuCtxGetId", ctxGetId);
        find(library, "cuCtxGetDevice", ctxGetDevice);
        find(library, "cuDeviceGetAttribute", deviceGetAttribute);
        find(library, "cuModuleLoadData", moduleLoadData);
        find(library, "cuModuleGetFunction", moduleGetFunction);
        find(library, "cuFuncSetAttribute", funcSetAttribute);
        find(library, "cuLaunchKernel", launch);
        find(library, "cuGetErrorName", getErrorName);
    }

    Error explain(char const* call, CUresult result) const
    {
        if (result == CUDA_SUCCESS)
        {
            return {};
        }
        char const* name = nullptr;
        getErrorName(result, &name);
        return std::string(call) + ": " + (name != nullptr ? name : "CUDA error " + std::to_string(result));
    }

private:
    template <typename Function>
    void find(void* library, char const* name, Function& function)
    {
        function = reinterpret_cast<Function>(dlsym(library, name));
        if (function == nullptr && problem.empty())
        {
            problem = std::string("the CUDA driver lacks ") + name;
        }
    }
};

Driver const& driver()
{
    static Driver const instance;
    return instance;
}

//! Kernels stay loaded as long as their context: unloading could race with work on a stream. Contexts are told apart by
//! their ids, which are never used again; a handle may be that of a later context.
Error loaded(Kernel const& kernel, CUfunction& function)
{
    static std::mutex mutex;
    static std::map<std::pair<unsigned long long, Kernel const*>, CUfunction> functions;
    Driver const& cuda = driver();
    unsigned long long context = 0;
    CUcontext const current = nullptr; // in place of a handle
    if (Error error = cuda.explain("cuCtxGetId", cuda.ctxGetId(current, &context)); !error.empty())
    {
        return error;
    }
    std::lock_guard<std::mutex> const lock(mutex);
    auto const known = functions.find({context, &kernel});
    if (known != functions.end())
    {
        function = known->second;
        return {};
    }
    CUmodule module = nullptr;
    Error error = cuda.explain("cuModuleLoadData", cuda.moduleLoadData(&module, kernel.image));
    if (error.empty())
    {
        error = cuda.explain("cuModuleGetFunction", cuda.moduleGetFunction(&function, module, kernel.entry));
    }
    constexpr int32_t kAlwaysAllowed = 48 * 1024;
    if (error.empty() && kernel.sharedBytes > kAlwaysAllowed)
    {
        error = cuda.explain("cuFuncSetAttribute",
            cuda.funcSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel.sharedBytes));
    }
    if (error.empty())
    {
        functions[{context, &kernel}] = function;
    }
    return error.empty() ? error : std::string(kernel.entry) + ": " + error;
}

//! Run `work`, turning an exception (out of memory) into an error: nothing throws past here.
template <typename Work>
Error guarded(Work work) noexcept
{
    try
    {
        return driver().problem.empty() ? work() : driver().problem;
    }
    catch (std::exception const& exception)
    {
        return exception.what();
    }
}

} // namespace

Error currentTarget(int32_t& target) noexcept
{
    return guarded([&]() -> Error {
        Driver const& cuda = driver();
        CUdevice device{};
        int major = 0;
        int minor = 0;
        Error error = cuda.explain("cuCtxGetDevice", cuda.ctxGetDevice(&device));
        std::pair<int*, CUdevice_attribute> const wanted[]{{&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR},
            {&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR}};
        for (auto const& [value, attribute] : wanted)
        {
            if (error.empty())
            {
                error = cuda.explain("cuDeviceGetAttribute", cuda.deviceGetAttribute(value, attribute, device));
            }
        }
        if (!error.empty())
        {
            return error;
        }
        // Up to 8.x, code for a lower minor version runs too; from 9.0 on it is for one chip alone.
        target = -1;
        for (int32_t i = 0; i < kTargetCount; ++i)
        {
            int const ours = kTargets[i];
            if (ours == 10 * major + minor || (major < 9 && ours / 10 == major && ours % 10 <= minor))
            {
                target = i;
            }
        }
        if (target >= 0)
        {
            return {};
        }
        return "no kernels for sm" + std::to_string(10 * major + minor) + "; this library has " + kTargetNames;
    });
}

Error prepareKernel(Kernel const& kernel) noexcept
{
    return guarded([&] {
        CUfunction function = nullptr;
        return loaded(kernel, function);
    });
}

Error launchKernel(Kernel const& kernel, uint32_t const (&grid)[3], void** parameters, void* stream) noexcept
{
    return guarded([&]() -> Error {
        CUfunction function = nullptr;
        if (Error error = loaded(kernel, function); !error.empty())
        {
            return error;
        }
        CUresult const result = driver().launch(function, grid[0], grid[1], grid[2],
            static_cast<unsigned>(kernel.threads), 1, 1, static_cast<unsigned>(kernel.sharedBytes),
            static_cast<CUstream>(stream), parameters, nullptr);
        Error const error = driver().explain("cuLaunchKernel", result);
        return error.empty() ? error : std::string(kernel.entry) + ": " + error;
    });
}

} // namespace glm_trt
