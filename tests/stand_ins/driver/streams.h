// Streams, the work that waits on them, events; captures and the graphs that they make.
#pragma once

#include "registry.h"

#include <deque>
#include <functional>
#include <thread>

namespace stand_in
{

struct Stream;
struct Capture;

//! After so many works of a stream.
struct Place
{
    std::shared_ptr<Stream> stream;
    uint64_t count;
};

struct Work
{
    std::string what;
    std::function<void()> run; //!< as the device; empty: nothing is done
    std::vector<Place> needs{};
};

struct Stream
{
    std::string name;
    bool isBlocking; //!< ordered against the legacy stream (CU_STREAM_NON_BLOCKING is absent)
    std::deque<Work> waiting{};
    uint64_t done{0};
    std::shared_ptr<Capture> capture{};

    uint64_t queued() const
    {
        return done + waiting.size();
    }
};

struct Event
{
    std::vector<Place> places{};         //!< empty: never recorded, and so complete
    std::shared_ptr<Capture> capture{}; //!< that it was recorded in
    size_t node{0};
};

//! A graph: works in the order that they were captured in, each with the earlier ones that it needs.
struct Graph
{
    struct Node
    {
        Work work;
        std::vector<size_t> needs;
    };
    std::vector<Node> nodes{};
};

struct Capture
{
    std::shared_ptr<Graph> graph;
    CUstreamCaptureMode mode;
    std::thread::id thread;
    std::shared_ptr<Stream> origin;
    //! Of each stream that takes part: the nodes that its next one needs, and whether the origin waits for them.
    struct Branch
    {
        std::vector<size_t> last;
        bool isJoined;
    };
    std::map<std::shared_ptr<Stream>, Branch> branches{};
    bool isInvalid{false};
    bool isOver{false};
};

Registry<Stream>& streams();
Registry<Event>& events();
Registry<Graph>& graphs();
Registry<std::shared_ptr<Graph>>& executables();
std::shared_ptr<Stream> legacyStream();

//! The stream of a handle, the legacy one of 0; nullptr and a violation for none.
std::shared_ptr<Stream> streamOf(CUstream handle, char const* call);

//! Put work on a stream, into its capture if it has one; inside device work it is done at once.
CUresult queue(CUstream handle, char const* call, Work work);
CUresult queue(std::shared_ptr<Stream> const& stream, char const* call, Work work);
//! Do work until these places are reached; what else is done before, the seed says.
void runUntil(std::vector<Place> const& places);
void runAll();
//! Streams that were destroyed and have work left are kept here until it is done.
void keepUntilDone(std::shared_ptr<Stream> const& stream);
//! Forget all work, as the end of a context does.
void dropWork();

//! Whether a capture in progress forbids this thread a call that allocates or waits; it is invalid then.
//! everyMode: also a relaxed one.
bool isForbidden(bool everyMode = false, std::shared_ptr<Stream> const& of = nullptr);
//! The legacy stream is used: nothing may be capturing (cuStreamBeginCapture, cudaStreamLegacy).
void checkLegacy(char const* call);
CUresult beginCapture(std::shared_ptr<Stream> const& stream, CUstreamCaptureMode mode);
CUresult endCapture(std::shared_ptr<Stream> const& stream, std::shared_ptr<Graph>& graph);
CUresult recordEvent(std::shared_ptr<Event> const& event, std::shared_ptr<Stream> const& stream);
CUresult waitEvent(std::shared_ptr<Stream> const& stream, std::shared_ptr<Event> const& event);
void addNode(std::shared_ptr<Stream> const& stream, Work work);
//! All nodes once, in an order that their needs allow.
Work replay(std::shared_ptr<Graph> const& graph);

} // namespace stand_in
