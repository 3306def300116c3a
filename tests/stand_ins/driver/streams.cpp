#include "streams.h"

#include "memory.h"

#include <algorithm>

namespace stand_in
{
namespace
{

std::vector<std::shared_ptr<Stream>>& leftover()
{
    static auto* const made = new std::vector<std::shared_ptr<Stream>>;
    return *made;
}

std::vector<std::shared_ptr<Stream>> allStreams()
{
    std::vector<std::shared_ptr<Stream>> found = leftover();
    found.push_back(legacyStream());
    for (auto const& [handle, stream] : streams().live())
    {
        found.push_back(stream);
    }
    return found;
}

bool isReached(Place const& place)
{
    return place.stream->done >= place.count;
}

bool isReady(Stream const& stream)
{
    return !stream.waiting.empty()
        && std::all_of(stream.waiting.front().needs.begin(), stream.waiting.front().needs.end(), isReached);
}

//! How far each stream must come for these places, and for what they need.
void require(std::map<std::shared_ptr<Stream>, uint64_t>& wanted, Place const& place)
{
    uint64_t& count = wanted[place.stream];
    uint64_t const from = std::max(count, place.stream->done);
    if (place.count <= from)
    {
        return;
    }
    count = place.count;
    for (uint64_t i = from; i < place.count; ++i)
    {
        for (Place const& need : place.stream->waiting[i - place.stream->done].needs)
        {
            require(wanted, need);
        }
    }
}

void runFirst(Stream& stream)
{
    Work const work = std::move(stream.waiting.front());
    stream.waiting.pop_front();
    if (work.run && faultSoFar() == CUDA_SUCCESS) // after a fault nothing runs any more
    {
        DeviceWork const device(work.what);
        work.run();
    }
    ++stream.done;
}

} // namespace

uint64_t newHandle()
{
    static uint64_t last = 0x5EED00000000; // nothing is mapped there
    return last += 16;
}

Registry<Stream>& streams()
{
    static auto* const made = new Registry<Stream>("stream");
    return *made;
}

Registry<Event>& events()
{
    static auto* const made = new Registry<Event>("event");
    return *made;
}

std::shared_ptr<Stream> legacyStream()
{
    static auto* const made = new std::shared_ptr<Stream>(new Stream{"the legacy stream", true});
    return *made;
}

std::shared_ptr<Stream> streamOf(CUstream handle, char const* call)
{
    if (handle == nullptr || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD)
    {
        checkLegacy(call);
        return legacyStream();
    }
    return streams().find(handle, call);
}

CUresult queue(CUstream handle, char const* call, Work work)
{
    std::shared_ptr<Stream> const stream = streamOf(handle, call);
    return stream == nullptr ? CUDA_ERROR_INVALID_HANDLE : queue(stream, call, std::move(work));
}

CUresult queue(std::shared_ptr<Stream> const& stream, char const* call, Work work)
{
    work.what = std::string(call) + (work.what.empty() ? "" : ": " + work.what);
    if (isDevice())
    {
        DeviceWork const device(work.what);
        work.run();
        return faultSoFar();
    }
    if (stream->capture != nullptr)
    {
        if (stream->capture->isInvalid)
        {
            return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        }
        addNode(stream, std::move(work));
        return CUDA_SUCCESS;
    }
    // "The legacy default stream synchronizes with other blocking streams" (API synchronization behavior).
    if (stream == legacyStream())
    {
        for (auto const& other : allStreams())
        {
            if (other->isBlocking && other != stream)
            {
                work.needs.push_back({other, other->queued()});
            }
        }
    }
    else if (stream->isBlocking)
    {
        work.needs.push_back({legacyStream(), legacyStream()->queued()});
    }
    stream->waiting.push_back(std::move(work));
    return CUDA_SUCCESS;
}

void runUntil(std::vector<Place> const& places)
{
    if (isDevice())
    {
        return;
    }
    std::map<std::shared_ptr<Stream>, uint64_t> wanted;
    for (Place const& place : places)
    {
        require(wanted, place);
    }
    enum
    {
        kLEAST, // nothing that need not be done
        kANY,
        kMOST // all that can be done
    };
    auto const eagerness = randomBelow(3);
    auto const isOver = [&places]() { return std::all_of(places.begin(), places.end(), isReached); };
    while (eagerness == kMOST || !isOver())
    {
        std::vector<std::shared_ptr<Stream>> ready;
        for (auto const& stream : allStreams())
        {
            auto const found = wanted.find(stream);
            bool const isWanted = found != wanted.end() && stream->done < found->second;
            if (isReady(*stream) && (eagerness != kLEAST || isWanted))
            {
                ready.push_back(stream);
            }
        }
        if (ready.empty())
        {
            if (!isOver())
            {
                violated("stuck", "streams wait for one another");
            }
            break;
        }
        runFirst(*ready[randomBelow(ready.size())]);
    }
    auto& left = leftover();
    left.erase(std::remove_if(left.begin(), left.end(), [](auto const& stream) { return stream->waiting.empty(); }),
        left.end());
}

void runAll()
{
    std::vector<Place> places;
    for (auto const& stream : allStreams())
    {
        places.push_back({stream, stream->queued()});
    }
    runUntil(places);
}

void keepUntilDone(std::shared_ptr<Stream> const& stream)
{
    if (!stream->waiting.empty())
    {
        leftover().push_back(stream);
    }
}

void dropWork()
{
    for (auto const& stream : allStreams())
    {
        stream->done += stream->waiting.size();
        stream->waiting.clear();
    }
    leftover().clear();
}

CUresult recordEvent(std::shared_ptr<Event> const& event, std::shared_ptr<Stream> const& stream)
{
    if (stream->capture != nullptr)
    {
        event->capture = stream->capture;
        addNode(stream, {"cuEventRecord", {}});
        event->node = stream->capture->graph->nodes.size() - 1;
        return CUDA_SUCCESS;
    }
    event->capture = nullptr;
    CUresult const result = queue(stream, "cuEventRecord", {"", [] {}});
    event->places = {{stream, stream->queued()}};
    return result;
}

CUresult waitEvent(std::shared_ptr<Stream> const& stream, std::shared_ptr<Event> const& event)
{
    std::shared_ptr<Capture> const capture = event->capture;
    if (capture != nullptr && !capture->isOver)
    {
        if (stream->capture != nullptr && stream->capture != capture)
        {
            capture->isInvalid = stream->capture->isInvalid = true;
            return CUDA_ERROR_STREAM_CAPTURE_MERGE;
        }
        stream->capture = capture;
        Capture::Branch& branch = capture->branches[stream];
        branch.last.push_back(event->node);
        for (auto& [other, from] : capture->branches)
        {
            bool const isFrom = std::find(from.last.begin(), from.last.end(), event->node) != from.last.end();
            from.isJoined = from.isJoined || (isFrom && other != stream);
        }
        branch.isJoined = stream == capture->origin;
        return CUDA_SUCCESS;
    }
    if (stream->capture != nullptr)
    {
        stream->capture->isInvalid = true; // "a dependency on uncaptured work in another stream"
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    Work work{"", [] {}};
    work.needs = event->places;
    return queue(stream, "cuStreamWaitEvent", std::move(work));
}

} // namespace stand_in
