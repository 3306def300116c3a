// Names of errors, functions by name; and what the stand-in has beside a driver's functions.
#include "context.h"
#include "kernels.h"
#include "memory.h"
#include "streams.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <unistd.h>

using namespace stand_in;

namespace
{

constexpr int kViolated = 86;

struct Named
{
    CUresult result;
    char const* name;
};

#define NAMED(name)                                                                                                    \
    {                                                                                                                  \
        name, #name                                                                                                    \
    }
constexpr Named kNames[] = {NAMED(CUDA_SUCCESS), NAMED(CUDA_ERROR_INVALID_VALUE), NAMED(CUDA_ERROR_OUT_OF_MEMORY),
    NAMED(CUDA_ERROR_NOT_INITIALIZED), NAMED(CUDA_ERROR_INVALID_DEVICE), NAMED(CUDA_ERROR_INVALID_IMAGE),
    NAMED(CUDA_ERROR_INVALID_CONTEXT), NAMED(CUDA_ERROR_NO_BINARY_FOR_GPU), NAMED(CUDA_ERROR_INVALID_PTX),
    NAMED(CUDA_ERROR_INVALID_HANDLE), NAMED(CUDA_ERROR_ILLEGAL_STATE), NAMED(CUDA_ERROR_NOT_FOUND),
    NAMED(CUDA_ERROR_NOT_READY), NAMED(CUDA_ERROR_ILLEGAL_ADDRESS), NAMED(CUDA_ERROR_CONTEXT_IS_DESTROYED),
    NAMED(CUDA_ERROR_MISALIGNED_ADDRESS), NAMED(CUDA_ERROR_LAUNCH_FAILED), NAMED(CUDA_ERROR_NOT_PERMITTED),
    NAMED(CUDA_ERROR_NOT_SUPPORTED), NAMED(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),
    NAMED(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED), NAMED(CUDA_ERROR_STREAM_CAPTURE_MERGE),
    NAMED(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED), NAMED(CUDA_ERROR_STREAM_CAPTURE_UNJOINED),
    NAMED(CUDA_ERROR_STREAM_CAPTURE_ISOLATION), NAMED(CUDA_ERROR_CAPTURED_EVENT),
    NAMED(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD)};

//! The newest form of a function: its name with a version behind it, or as it is.
void* functionNamed(std::string const& name)
{
    std::string const known = name == "cuGraphInstantiate" ? "cuGraphInstantiateWithFlags" : name;
    for (std::string const& form : {known + "_v2", known})
    {
        Dl_info ours{};
        Dl_info found{};
        void* const function = dlsym(RTLD_DEFAULT, form.c_str());
        void* const here = reinterpret_cast<void*>(&functionNamed);
        if (function != nullptr && dladdr(function, &found) != 0 && dladdr(here, &ours) != 0
            && found.dli_fbase == ours.dli_fbase)
        {
            return function;
        }
    }
    return nullptr;
}

void finish()
{
    if (!isInitialised())
    {
        return;
    }
    reportLeft("leaked", "before the end");
    if (isRetained())
    {
        violated("leaked", "the primary context was never released");
    }
    stopExecutor();
}

__attribute__((destructor)) void atExit()
{
    finish();
    if (isInitialised() && isViolated())
    {
        std::fflush(nullptr);
        _exit(kViolated);
    }
}

} // namespace

STAND_IN_EXPORT CUresult cuGetErrorName(CUresult result, char const** name)
{
    for (Named const& named : kNames)
    {
        if (named.result == result)
        {
            *name = named.name;
            return CUDA_SUCCESS;
        }
    }
    *name = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}

STAND_IN_EXPORT CUresult cuGetErrorString(CUresult result, char const** text)
{
    return cuGetErrorName(result, text);
}

STAND_IN_EXPORT CUresult cuGetProcAddress_v2(
    char const* symbol, void** function, int, cuuint64_t, CUdriverProcAddressQueryResult* status)
{
    *function = functionNamed(symbol);
    if (status != nullptr)
    {
        *status = *function != nullptr ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    }
    return *function != nullptr ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

//! Settings from a flat JSON object: target, memory, seed, kernels, report, fail.
STAND_IN_EXPORT void standInConfigure(char const* json)
{
    Lock const held(lock());
    configure(json);
}

//! Violations so far as lines, which are forgotten; so is the fault that a kernel left. Bytes of them all.
STAND_IN_EXPORT size_t standInViolations(char* buffer, size_t size)
{
    Lock const held(lock());
    std::string const found = takeViolations();
    if (size > 0)
    {
        size_t const kept = std::min(size - 1, found.size());
        std::memcpy(buffer, found.data(), kept);
        buffer[kept] = 0;
    }
    return found.size();
}

//! As at the process' end: what is left is reported.
STAND_IN_EXPORT void standInFinish()
{
    Lock const held(lock());
    finish();
}

//! Kernels are handed to this function when the stream comes to them; to the executor again after nullptr.
//! Its first argument is the image's SHA-256 in hex.
STAND_IN_EXPORT void standInOnLaunch(LaunchCallback callback)
{
    Lock const held(lock());
    onLaunch(callback);
}

//! Work of the device, for libraries that stand for others: `work` when the stream comes to it (at each replay, where it
//! was captured), `destroy` when it will not come again.
STAND_IN_EXPORT int standInQueue(
    CUstream stream, char const* what, void (*work)(void*), void (*destroy)(void*), void* data)
{
    std::shared_ptr<void> const kept(data, [destroy](void* held) {
        if (destroy != nullptr)
        {
            destroy(held);
        }
    });
    BEGIN_IN_CONTEXT("standInQueue")
    return queue(stream, what, {"", [work, kept] { work(kept.get()); }});
}

//! Whether all of it lies in one live allocation; a violation where it does not.
STAND_IN_EXPORT int standInHolds(CUdeviceptr address, size_t bytes)
{
    Lock const held(lock());
    return holds(address, bytes, "standInHolds") ? 1 : 0;
}

//! Ask the executor, from work of the device. 0, and a JSON object in `reply`; 1 where it failed, with what it said.
STAND_IN_EXPORT int standInExecute(char const* request, char* reply, size_t size)
{
    Lock const held(lock());
    std::string answered;
    bool const isDone = execute(request, answered);
    if (size > 0)
    {
        size_t const kept = std::min(size - 1, answered.size());
        std::memcpy(reply, answered.data(), kept);
        reply[kept] = 0;
    }
    return isDone && answered.size() < size ? 0 : 1;
}

//! Record a violation of a rule of another stand-in.
STAND_IN_EXPORT void standInViolated(char const* rule, char const* what)
{
    Lock const held(lock());
    violated(rule, what);
}

//! For an executor: map its parent's memory.
STAND_IN_EXPORT void standInAttach(int descriptor, uint64_t address, uint64_t bytes)
{
    attachArena(descriptor, address, bytes);
}

//! For an executor: addresses that were touched and are not allocated, at most `size`; how many.
STAND_IN_EXPORT size_t standInStrays(uint64_t* addresses, size_t size)
{
    std::vector<uint64_t> const found = takeStrays();
    size_t const kept = std::min(size, found.size());
    std::copy_n(found.begin(), kept, addresses);
    return kept;
}
