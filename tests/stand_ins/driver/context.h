// The primary context of the one device, and what is current in each thread.
#pragma once

#include "report.h"

namespace stand_in
{

CUresult retainPrimary(CUcontext* context);
CUresult releasePrimary();
bool isRetained();
CUresult setCurrent(CUcontext context);
CUresult push(CUcontext context);
CUresult pop(CUcontext* context);
CUcontext current();
//! Of this context, or of the current one if it is nullptr.
CUresult contextId(CUcontext context, unsigned long long* id);
unsigned long long aliveId();

//! What every call begins with: initialised, nothing faulted, no failure asked for.
CUresult begin(char const* call);
//! And what needs a context: one that is current in this thread and alive.
CUresult beginInContext(char const* call);
//! What gives something back is done after a fault too, and has its error then.
CUresult beginToGiveBack();
void initialise();
bool isInitialised();

//! What is left now, as violations of `rule`; it is forgotten.
void reportLeft(char const* rule, char const* when);

} // namespace stand_in

// A call: the lock is held until it ends.
#define BEGIN(name)                                                                                                    \
    ::stand_in::Lock const held(::stand_in::lock());                                                                   \
    if (CUresult const begun = ::stand_in::begin(name); begun != CUDA_SUCCESS)                                         \
    {                                                                                                                  \
        return begun;                                                                                                  \
    }
#define BEGIN_IN_CONTEXT(name)                                                                                         \
    ::stand_in::Lock const held(::stand_in::lock());                                                                   \
    if (CUresult const begun = ::stand_in::beginInContext(name); begun != CUDA_SUCCESS)                                \
    {                                                                                                                  \
        return begun;                                                                                                  \
    }
#define GIVE_BACK(name)                                                                                                \
    ::stand_in::Lock const held(::stand_in::lock());                                                                   \
    if (CUresult const begun = ::stand_in::beginToGiveBack(); begun != CUDA_SUCCESS)                                   \
    {                                                                                                                  \
        return begun;                                                                                                  \
    }
