#include "memory.h"
#include "streams.h"

#include <algorithm>

namespace stand_in
{
namespace
{

std::vector<std::shared_ptr<Capture>>& captures()
{
    static auto* const made = new std::vector<std::shared_ptr<Capture>>;
    return *made;
}

void finish(std::shared_ptr<Capture> const& capture)
{
    capture->isOver = true;
    for (auto const& [stream, branch] : capture->branches)
    {
        stream->capture = nullptr;
    }
    auto& all = captures();
    all.erase(std::remove(all.begin(), all.end(), capture), all.end());
}

} // namespace

Registry<Graph>& graphs()
{
    static auto* const made = new Registry<Graph>("graph");
    return *made;
}

Registry<std::shared_ptr<Graph>>& executables()
{
    static auto* const made = new Registry<std::shared_ptr<Graph>>("executable graph");
    return *made;
}

bool isForbidden(bool everyMode, std::shared_ptr<Stream> const& of)
{
    bool found = false;
    for (auto const& capture : captures())
    {
        // cuThreadExchangeStreamCaptureMode: global forbids all threads, thread-local its own, relaxed none.
        bool const byMode = capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL
            || (capture->thread == std::this_thread::get_id()
                && (everyMode || capture->mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        bool const isItsOwn = of != nullptr && capture->branches.count(of) != 0;
        if (byMode || isItsOwn)
        {
            capture->isInvalid = true;
            found = true;
        }
    }
    return found;
}

void checkLegacy(char const* call)
{
    if (!captures().empty() && !isDevice())
    {
        violated("legacy-stream-while-capturing", call);
    }
}

CUresult beginCapture(std::shared_ptr<Stream> const& stream, CUstreamCaptureMode mode)
{
    if (stream == legacyStream())
    {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (stream->capture != nullptr)
    {
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    auto const capture = std::make_shared<Capture>(
        Capture{std::make_shared<Graph>(), mode, std::this_thread::get_id(), stream});
    capture->branches[stream] = {{}, true};
    stream->capture = capture;
    captures().push_back(capture);
    return CUDA_SUCCESS;
}

CUresult endCapture(std::shared_ptr<Stream> const& stream, std::shared_ptr<Graph>& graph)
{
    std::shared_ptr<Capture> const capture = stream->capture;
    if (capture == nullptr)
    {
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    if (capture->origin != stream)
    {
        return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    }
    finish(capture);
    bool const isOther = capture->thread != std::this_thread::get_id();
    if (isOther && capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED)
    {
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    }
    if (capture->isInvalid)
    {
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    for (auto const& [other, branch] : capture->branches)
    {
        if (!branch.isJoined)
        {
            return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
        }
    }
    graph = capture->graph;
    return CUDA_SUCCESS;
}

void addNode(std::shared_ptr<Stream> const& stream, Work work)
{
    Capture& capture = *stream->capture;
    Capture::Branch& branch = capture.branches[stream];
    capture.graph->nodes.push_back({std::move(work), branch.last});
    branch.last = {capture.graph->nodes.size() - 1};
    branch.isJoined = stream == capture.origin;
}

Work replay(std::shared_ptr<Graph> const& graph)
{
    return {"", [graph] {
                std::vector<bool> isDone(graph->nodes.size(), false);
                for (size_t left = graph->nodes.size(); left > 0; --left)
                {
                    std::vector<size_t> ready;
                    for (size_t i = 0; i < graph->nodes.size(); ++i)
                    {
                        auto const& needs = graph->nodes[i].needs;
                        if (!isDone[i] && std::all_of(needs.begin(), needs.end(), [&](size_t n) { return isDone[n]; }))
                        {
                            ready.push_back(i);
                        }
                    }
                    size_t const next = ready[randomBelow(ready.size())];
                    isDone[next] = true;
                    Work const& work = graph->nodes[next].work;
                    if (work.run && faultSoFar() == CUDA_SUCCESS)
                    {
                        DeviceWork const device("in a graph: " + work.what);
                        work.run();
                    }
                }
            }};
}

} // namespace stand_in
