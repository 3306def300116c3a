// Streams, events, captures and graphs.
#include "context.h"
#include "memory.h"
#include "streams.h"

using namespace stand_in;

namespace
{

CUresult const kForbidden = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;

//! How far a stream is; waiting for it, or asking, is no part of a capture.
CUresult waitFor(CUstream handle, char const* call, bool isQuery)
{
    std::shared_ptr<Stream> const stream = streamOf(handle, call);
    if (stream == nullptr)
    {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (isForbidden(false, stream))
    {
        return kForbidden;
    }
    if (isQuery && stream->done < stream->queued())
    {
        // It may be done by now, and may not.
        if (randomBelow(2) == 0)
        {
            return CUDA_ERROR_NOT_READY;
        }
    }
    runUntil({{stream, stream->queued()}});
    return faultSoFar();
}

CUresult waitForEvent(CUevent handle, char const* call, bool isQuery)
{
    std::shared_ptr<Event> const event = events().find(handle, call);
    if (event == nullptr)
    {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (event->capture != nullptr && !event->capture->isOver)
    {
        event->capture->isInvalid = true;
        return CUDA_ERROR_CAPTURED_EVENT;
    }
    if (isForbidden())
    {
        return kForbidden;
    }
    bool isDone = true;
    for (Place const& place : event->places)
    {
        isDone = isDone && place.stream->done >= place.count;
    }
    if (isQuery && !isDone && randomBelow(2) == 0)
    {
        return CUDA_ERROR_NOT_READY;
    }
    runUntil(event->places);
    return faultSoFar();
}

template <typename Handle, typename T>
CUresult destroy(Registry<T>& registry, Handle handle, char const* call, CUresult otherwise)
{
    return registry.remove(handle, call) == nullptr ? otherwise : faultSoFar();
}

} // namespace

STAND_IN_EXPORT CUresult cuStreamCreate(CUstream* stream, unsigned flags)
{
    BEGIN_IN_CONTEXT("cuStreamCreate")
    if (flags > CU_STREAM_NON_BLOCKING)
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    bool const isBlocking = (flags & CU_STREAM_NON_BLOCKING) == 0;
    *stream = streams().add<CUstream>(std::make_shared<Stream>(Stream{"stream", isBlocking}));
    return CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int)
{
    return cuStreamCreate(stream, flags);
}

STAND_IN_EXPORT CUresult cuStreamDestroy_v2(CUstream handle)
{
    GIVE_BACK("cuStreamDestroy")
    std::shared_ptr<Stream> const stream = streams().remove(handle, "cuStreamDestroy");
    if (stream == nullptr)
    {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (stream->capture != nullptr)
    {
        violated("destroyed-while-capturing", "cuStreamDestroy");
        stream->capture->isInvalid = true;
    }
    keepUntilDone(stream); // "the function will return immediately"
    return faultSoFar();
}

STAND_IN_EXPORT CUresult cuStreamSynchronize(CUstream stream)
{
    BEGIN_IN_CONTEXT("cuStreamSynchronize")
    return waitFor(stream, "cuStreamSynchronize", false);
}

STAND_IN_EXPORT CUresult cuStreamQuery(CUstream stream)
{
    BEGIN_IN_CONTEXT("cuStreamQuery")
    return waitFor(stream, "cuStreamQuery", true);
}

STAND_IN_EXPORT CUresult cuStreamWaitEvent(CUstream handle, CUevent eventHandle, unsigned)
{
    BEGIN_IN_CONTEXT("cuStreamWaitEvent")
    std::shared_ptr<Stream> const stream = streamOf(handle, "cuStreamWaitEvent");
    std::shared_ptr<Event> const event = events().find(eventHandle, "cuStreamWaitEvent");
    return stream == nullptr || event == nullptr ? CUDA_ERROR_INVALID_HANDLE : waitEvent(stream, event);
}

STAND_IN_EXPORT CUresult cuStreamGetCtx(CUstream, CUcontext* context)
{
    BEGIN_IN_CONTEXT("cuStreamGetCtx")
    *context = current();
    return CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void* data)
{
    BEGIN_IN_CONTEXT("cuLaunchHostFunc")
    return queue(stream, "cuLaunchHostFunc", {"", [=] { function(data); }});
}

STAND_IN_EXPORT CUresult cuEventCreate(CUevent* event, unsigned)
{
    BEGIN_IN_CONTEXT("cuEventCreate")
    *event = events().add<CUevent>(std::make_shared<Event>());
    return CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuEventDestroy_v2(CUevent event)
{
    GIVE_BACK("cuEventDestroy")
    return destroy(events(), event, "cuEventDestroy", CUDA_ERROR_INVALID_HANDLE);
}

STAND_IN_EXPORT CUresult cuEventRecord(CUevent eventHandle, CUstream handle)
{
    BEGIN_IN_CONTEXT("cuEventRecord")
    std::shared_ptr<Event> const event = events().find(eventHandle, "cuEventRecord");
    std::shared_ptr<Stream> const stream = streamOf(handle, "cuEventRecord");
    return event == nullptr || stream == nullptr ? CUDA_ERROR_INVALID_HANDLE : recordEvent(event, stream);
}

STAND_IN_EXPORT CUresult cuEventSynchronize(CUevent event)
{
    BEGIN_IN_CONTEXT("cuEventSynchronize")
    return waitForEvent(event, "cuEventSynchronize", false);
}

STAND_IN_EXPORT CUresult cuEventQuery(CUevent event)
{
    BEGIN_IN_CONTEXT("cuEventQuery")
    return waitForEvent(event, "cuEventQuery", true);
}

STAND_IN_EXPORT CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent from, CUevent to)
{
    BEGIN_IN_CONTEXT("cuEventElapsedTime")
    *milliseconds = 1; // time is not modelled
    bool const isThere = events().find(from, "cuEventElapsedTime") && events().find(to, "cuEventElapsedTime");
    return isThere ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

STAND_IN_EXPORT CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode)
{
    BEGIN_IN_CONTEXT("cuStreamBeginCapture")
    std::shared_ptr<Stream> const stream = streamOf(handle, "cuStreamBeginCapture");
    return stream == nullptr ? CUDA_ERROR_INVALID_HANDLE : beginCapture(stream, mode);
}

STAND_IN_EXPORT CUresult cuStreamEndCapture(CUstream handle, CUgraph* graph)
{
    BEGIN_IN_CONTEXT("cuStreamEndCapture")
    *graph = nullptr;
    std::shared_ptr<Stream> const stream = streams().find(handle, "cuStreamEndCapture");
    if (stream == nullptr)
    {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    std::shared_ptr<Graph> made;
    CUresult const result = endCapture(stream, made);
    *graph = made != nullptr ? graphs().add<CUgraph>(made) : nullptr;
    return result;
}

STAND_IN_EXPORT CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status)
{
    BEGIN_IN_CONTEXT("cuStreamIsCapturing")
    std::shared_ptr<Stream> const stream = streams().find(handle, "cuStreamIsCapturing");
    if (stream == nullptr)
    {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    *status = stream->capture == nullptr ? CU_STREAM_CAPTURE_STATUS_NONE
        : stream->capture->isInvalid     ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                         : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph handle, unsigned long long)
{
    BEGIN_IN_CONTEXT("cuGraphInstantiate")
    std::shared_ptr<Graph> const graph = graphs().find(handle, "cuGraphInstantiate");
    if (graph == nullptr)
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *executable = executables().add<CUgraphExec>(std::make_shared<std::shared_ptr<Graph>>(graph));
    return CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream)
{
    BEGIN_IN_CONTEXT("cuGraphLaunch")
    auto const executable = executables().find(handle, "cuGraphLaunch");
    return executable == nullptr ? CUDA_ERROR_INVALID_VALUE : queue(stream, "cuGraphLaunch", replay(*executable));
}

STAND_IN_EXPORT CUresult cuGraphUpload(CUgraphExec handle, CUstream)
{
    BEGIN_IN_CONTEXT("cuGraphUpload")
    return executables().find(handle, "cuGraphUpload") == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode*, size_t* count)
{
    BEGIN_IN_CONTEXT("cuGraphGetNodes")
    std::shared_ptr<Graph> const graph = graphs().find(handle, "cuGraphGetNodes");
    if (graph == nullptr)
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *count = graph->nodes.size();
    return CUDA_SUCCESS;
}

STAND_IN_EXPORT CUresult cuGraphDestroy(CUgraph graph)
{
    GIVE_BACK("cuGraphDestroy")
    return destroy(graphs(), graph, "cuGraphDestroy", CUDA_ERROR_INVALID_VALUE);
}

STAND_IN_EXPORT CUresult cuGraphExecDestroy(CUgraphExec executable)
{
    GIVE_BACK("cuGraphExecDestroy")
    return destroy(executables(), executable, "cuGraphExecDestroy", CUDA_ERROR_INVALID_VALUE);
}
