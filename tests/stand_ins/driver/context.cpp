#include "context.h"

#include "memory.h"
#include "streams.h"

#include <unistd.h>
#include <vector>

namespace stand_in
{
namespace
{

// A real one's handle comes again too, for a context that is another.
CUcontext const kPrimary = reinterpret_cast<CUcontext>(0x5EEC00000000);

pid_t gProcess = 0;
int gRetained = 0;
unsigned long long gId = 0;

struct Current
{
    CUcontext context;
    unsigned long long id;
};
thread_local std::vector<Current> tCurrent;

bool isAlive(Current const& of)
{
    return gRetained > 0 && of.id == gId;
}

template <typename T>
void reportAll(Registry<T>& registry, char const* rule, char const* when)
{
    for (auto const& [handle, object] : registry.takeAll())
    {
        violated(rule, std::string(registry.what()) + " " + hex(handle) + " was never destroyed " + when);
    }
}

} // namespace

void initialise()
{
    readEnvironment();
    openArena();
    gProcess = getpid();
}

bool isInitialised()
{
    return gProcess == getpid(); // a fork has no driver
}

CUresult retainPrimary(CUcontext* context)
{
    if (gRetained++ == 0)
    {
        ++gId;
    }
    *context = kPrimary;
    return CUDA_SUCCESS;
}

CUresult releasePrimary()
{
    if (gRetained == 0)
    {
        violated("released-too-often", "the primary context");
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (--gRetained == 0)
    {
        dropWork();
        reportLeft("left-in-context", "before its context was released");
    }
    return CUDA_SUCCESS;
}

bool isRetained()
{
    return gRetained > 0;
}

CUresult setCurrent(CUcontext context)
{
    if (context != nullptr && (context != kPrimary || gRetained == 0))
    {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (!tCurrent.empty())
    {
        tCurrent.pop_back();
    }
    if (context != nullptr)
    {
        tCurrent.push_back({context, gId});
    }
    return CUDA_SUCCESS;
}

CUresult push(CUcontext context)
{
    if (context != kPrimary || gRetained == 0)
    {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    tCurrent.push_back({context, gId});
    return CUDA_SUCCESS;
}

CUresult pop(CUcontext* context)
{
    if (tCurrent.empty())
    {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (context != nullptr)
    {
        *context = tCurrent.back().context;
    }
    tCurrent.pop_back();
    return CUDA_SUCCESS;
}

CUcontext current()
{
    return tCurrent.empty() ? nullptr : tCurrent.back().context;
}

CUresult contextId(CUcontext context, unsigned long long* id)
{
    if (context == nullptr)
    {
        if (tCurrent.empty())
        {
            return CUDA_ERROR_INVALID_CONTEXT;
        }
        *id = tCurrent.back().id;
        return isAlive(tCurrent.back()) ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
    }
    *id = gId;
    return context == kPrimary && gRetained > 0 ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

unsigned long long aliveId()
{
    return gId;
}

CUresult begin(char const* call)
{
    if (!isInitialised())
    {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    if (mustFail(call))
    {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    return faultSoFar();
}

CUresult beginInContext(char const* call)
{
    CUresult const result = begin(call);
    return result != CUDA_SUCCESS ? result : beginToGiveBack();
}

CUresult beginToGiveBack()
{
    if (!isInitialised())
    {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    if (tCurrent.empty())
    {
        return isDevice() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
    }
    return isAlive(tCurrent.back()) ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

void reportLeft(char const* rule, char const* when)
{
    reportAll(executables(), rule, when);
    reportAll(graphs(), rule, when);
    reportAll(events(), rule, when);
    reportAll(streams(), rule, when);
    for (Range const& range : liveMemory())
    {
        violated(rule, std::to_string(range.bytes) + " bytes of device memory were never freed " + when);
        release(range.start);
    }
    for (Range const& range : livePinned())
    {
        violated(rule, std::to_string(range.bytes) + " bytes of pinned memory were never freed " + when);
        releasePinned(reinterpret_cast<void*>(range.start));
    }
}

} // namespace stand_in
