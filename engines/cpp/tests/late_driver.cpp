// A libcuda.so.1 for the tests of cuda_device.cpp, on host memory. Where the real one may do more, it does not; each rule
// is of the CUDA Driver API's documentation, named by its section.
//
// - Calls need a context that is current in their thread (Context Management). The primary one is counted.
// - Work on a stream is done when something waits for it, and only then ("API synchronization behavior": an asynchronous
//   copy may read the host's memory at any time until then). Memory holds NaN at first, and no address comes twice.
// - While a stream is captured nothing may be allocated, waited for, or copied from pageable memory (Stream Management,
//   "Graph Memory Nodes"); that makes the capture invalid. A graph keeps the addresses that it was captured with.
// - Every object is destroyed once. What is left when the process ends, and whatever else no right program does, is told
//   on stderr, and the process ends with status 86.
//
// STAND_IN_MEMORY: bytes of device memory. STAND_IN_FAIL=NAME:N: the Nth call of NAME finds no memory.
#include "late_state.h"

using namespace late;
using Lock = std::lock_guard<std::recursive_mutex>;

extern "C"
{

CUresult cuInit(unsigned)
{
    Lock const lock(state.mutex);
    if (char const* memory = std::getenv("STAND_IN_MEMORY"))
    {
        state.memory = std::strtoull(memory, nullptr, 10);
    }
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int)
{
    *device = 0;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice)
{
    *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? 9 : 0;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice)
{
    Lock const lock(state.mutex);
    ++state.retained;
    *context = kPrimary;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice)
{
    Lock const lock(state.mutex);
    if (--state.retained < 0)
    {
        state.violated("the primary context was released too often");
    }
    return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent_v2(CUcontext context)
{
    Lock const lock(state.mutex);
    current().push_back(context);
    return context == kPrimary && state.retained > 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuCtxPopCurrent_v2(CUcontext* context)
{
    Lock const lock(state.mutex);
    if (current().empty())
    {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    *context = current().back();
    current().pop_back();
    return CUDA_SUCCESS;
}

CUresult cuMemGetInfo_v2(size_t* free, size_t* total)
{
    Lock const lock(state.mutex);
    size_t used = 0;
    for (auto const& [memory, bytes] : state.live)
    {
        used += bytes;
    }
    *free = state.memory - used;
    *total = state.memory;
    return isCurrent() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuMemAlloc_v2(CUdeviceptr* memory, size_t bytes)
{
    Lock const lock(state.mutex);
    size_t free = 0;
    size_t total = 0;
    if (CUresult const result = cuMemGetInfo_v2(&free, &total); result != CUDA_SUCCESS)
    {
        return result;
    }
    if (isForbidden())
    {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (bytes > free || mustFail("cuMemAlloc"))
    {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *memory = reinterpret_cast<CUdeviceptr>(newMemory(state.live, bytes));
    return CUDA_SUCCESS;
}

CUresult cuMemFree_v2(CUdeviceptr memory)
{
    Lock const lock(state.mutex);
    if (!isCurrent())
    {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    runAll(); // "API synchronization behavior"
    if (state.live.erase(static_cast<char*>(pointer(memory))) == 0)
    {
        state.violated("device memory was freed twice, or is none");
        return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

CUresult cuMemHostAlloc(void** memory, size_t bytes, unsigned)
{
    Lock const lock(state.mutex);
    if (!isCurrent())
    {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (mustFail("cuMemHostAlloc"))
    {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *memory = newMemory(state.pinned, bytes);
    return CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void* memory)
{
    Lock const lock(state.mutex);
    if (!isCurrent())
    {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    return state.pinned.erase(static_cast<char*>(memory)) == 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, void const* from, size_t bytes, CUstream stream)
{
    Lock const lock(state.mutex);
    return copy(pointer(to), true, from, false, bytes, stream);
}

CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    Lock const lock(state.mutex);
    return copy(to, false, pointer(from), true, bytes, stream);
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    Lock const lock(state.mutex);
    return copy(pointer(to), true, pointer(from), true, bytes, stream);
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream)
{
    Lock const lock(state.mutex);
    return queue(stream,
        [=]
        {
            expectDevice(pointer(to), bytes);
            std::memset(pointer(to), value, bytes);
        });
}

CUresult cuStreamCreate(CUstream* stream, unsigned)
{
    Lock const lock(state.mutex);
    if (!isCurrent())
    {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (mustFail("cuStreamCreate"))
    {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *stream = reinterpret_cast<CUstream>(newObject(state.streams));
    return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream handle)
{
    Lock const lock(state.mutex);
    Stream* const stream = find(handle);
    if (!isCurrent() || stream == nullptr)
    {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (isForbidden())
    {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    run(*stream, ~size_t{0});
    return CUDA_SUCCESS;
}

CUresult cuStreamDestroy_v2(CUstream stream)
{
    Lock const lock(state.mutex);
    return destroy(state.streams, stream, "stream");
}

CUresult cuEventCreate(CUevent* event, unsigned)
{
    Lock const lock(state.mutex);
    if (!isCurrent())
    {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (mustFail("cuEventCreate"))
    {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *event = reinterpret_cast<CUevent>(newObject(state.events));
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy_v2(CUevent event)
{
    Lock const lock(state.mutex);
    return destroy(state.events, event, "event");
}

CUresult cuEventRecord(CUevent handle, CUstream stream)
{
    Lock const lock(state.mutex);
    auto* const event = reinterpret_cast<Event*>(handle);
    event->stream = find(stream);
    if (!isCurrent() || event->stream == nullptr)
    {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    event->place = event->stream->done + event->stream->queue.size();
    return CUDA_SUCCESS;
}

CUresult cuEventSynchronize(CUevent handle)
{
    Lock const lock(state.mutex);
    auto* const event = reinterpret_cast<Event*>(handle);
    if (!isCurrent())
    {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (isForbidden())
    {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (event->stream != nullptr)
    {
        run(*event->stream, event->place);
    }
    return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status)
{
    Lock const lock(state.mutex);
    Stream* const stream = find(handle);
    bool const is = stream != nullptr && stream->captured != nullptr;
    *status = is ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}

CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode)
{
    Lock const lock(state.mutex);
    Stream* const stream = find(handle);
    if (!isCurrent() || stream == nullptr || stream->captured != nullptr)
    {
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    stream->captured = std::make_shared<Works>();
    stream->capturer = std::this_thread::get_id();
    stream->isInvalid = false;
    return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream handle, CUgraph* graph)
{
    Lock const lock(state.mutex);
    Stream* const stream = find(handle);
    *graph = nullptr;
    if (!isCurrent() || stream == nullptr || stream->captured == nullptr)
    {
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    auto const captured = std::exchange(stream->captured, nullptr);
    if (stream->isInvalid)
    {
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    *graph = reinterpret_cast<CUgraph>(newObject(state.graphs, captured));
    return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long)
{
    Lock const lock(state.mutex);
    if (!isCurrent())
    {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (mustFail("cuGraphInstantiate"))
    {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    auto const& captured = *reinterpret_cast<std::shared_ptr<Works>*>(graph);
    *executable = reinterpret_cast<CUgraphExec>(newObject(state.executables, captured));
    return CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream)
{
    Lock const lock(state.mutex);
    auto* const executable = reinterpret_cast<std::shared_ptr<Works>*>(handle);
    if (state.executables.count(executable) == 0)
    {
        state.violated("a graph was launched after it was destroyed");
        return CUDA_ERROR_INVALID_HANDLE;
    }
    return queue(stream,
        [works = *executable]
        {
            for (auto const& work : *works)
            {
                work();
            }
        });
}

CUresult cuGraphDestroy(CUgraph graph)
{
    Lock const lock(state.mutex);
    return destroy(state.graphs, graph, "graph");
}

CUresult cuGraphExecDestroy(CUgraphExec executable)
{
    Lock const lock(state.mutex);
    return destroy(state.executables, executable, "executable graph");
}

CUresult cuGetErrorName(CUresult result, char const** name)
{
    *name = result == CUDA_ERROR_OUT_OF_MEMORY    ? "CUDA_ERROR_OUT_OF_MEMORY"
        : result == CUDA_ERROR_INVALID_CONTEXT    ? "CUDA_ERROR_INVALID_CONTEXT"
        : result == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
                                                  : nullptr;
    return *name != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

//! For stand-ins of libraries that work on a stream: work that runs when the stream reaches it, each replay too.
int standInQueue(CUstream stream, char const*, void (*work)(void*), void (*destroy)(void*), void* data)
{
    Lock const lock(state.mutex);
    std::shared_ptr<void> const kept(data, destroy);
    return queue(stream, [work, kept] { work(kept.get()); });
}

//! Inside of one live allocation? Else a violation.
int standInHolds(CUdeviceptr address, size_t bytes)
{
    Lock const lock(state.mutex);
    bool const does = holds(state.live, pointer(address), bytes);
    if (!does)
    {
        state.violated("work on device memory that is not allocated");
    }
    return does;
}

void standInViolated(char const* what)
{
    Lock const lock(state.mutex);
    state.violated(what);
}

} // extern "C"
