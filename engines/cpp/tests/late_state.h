// What late_driver.cpp models: memory, streams with the work that waits on them, graphs; and who is current where.
#pragma once

#include <cuda.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

namespace late
{

constexpr int kViolated = 86;
using Work = std::function<void()>;
using Works = std::vector<Work>;

struct Stream
{
    Works queue;
    size_t done{0}; // of all that were queued
    std::shared_ptr<Works> captured;
    std::thread::id capturer;
    bool isInvalid{false};
};

struct Event
{
    Stream* stream{nullptr};
    size_t place{0}; // in the stream
};

struct State
{
    ~State();
    void violated(std::string const& what)
    {
        std::fprintf(stderr, "late driver: %s\n", what.c_str());
        isWrong = true;
    }

    int retained{0};
    std::map<std::thread::id, std::vector<CUcontext>> current; // of threads
    size_t memory{size_t{1} << 30};
    std::map<char*, size_t> live;   // device memory
    std::map<char*, size_t> pinned; // host memory
    std::set<Stream*> streams;
    std::set<Event*> events;
    std::set<std::shared_ptr<Works>*> graphs;
    std::set<std::shared_ptr<Works>*> executables;
    std::map<std::string, int> calls;
    bool isWrong{false};
    std::recursive_mutex mutex; // one call at a time
};

inline State state;
inline auto* const kEver = new std::vector<void*>; // whatever was made stays, so that nothing comes twice
inline CUcontext const kPrimary = reinterpret_cast<CUcontext>(0x1000);

inline State::~State()
{
    auto const leaked = [this](size_t count, char const* what)
    {
        if (count != 0)
        {
            violated(std::to_string(count) + " " + what + " left");
        }
    };
    leaked(live.size(), "pieces of device memory");
    leaked(pinned.size(), "pieces of pinned memory");
    leaked(streams.size(), "streams");
    leaked(events.size(), "events");
    leaked(graphs.size(), "graphs");
    leaked(executables.size(), "executable graphs");
    leaked(static_cast<size_t>(retained), "retained contexts");
    for (auto const& [thread, contexts] : current)
    {
        leaked(contexts.size(), "contexts current in a thread");
    }
    if (isWrong)
    {
        _exit(kViolated);
    }
}

inline std::vector<CUcontext>& current()
{
    return state.current[std::this_thread::get_id()];
}

inline bool isCurrent()
{
    return !current().empty() && state.retained > 0;
}

inline bool mustFail(char const* name)
{
    char const* wanted = std::getenv("STAND_IN_FAIL");
    return wanted != nullptr && wanted == std::string(name) + ":" + std::to_string(++state.calls[name]);
}

//! The piece that all of address ... address + bytes lies in.
inline bool holds(std::map<char*, size_t> const& pieces, void const* address, size_t bytes)
{
    auto* const at = static_cast<char*>(const_cast<void*>(address));
    auto const after = pieces.upper_bound(at);
    return after != pieces.begin() && at + bytes <= std::prev(after)->first + std::prev(after)->second;
}

inline void expectDevice(void const* address, size_t bytes)
{
    if (!holds(state.live, address, bytes))
    {
        state.violated("work on device memory that is not allocated");
        _exit(kViolated); // it would be a fault of the process
    }
}

inline void run(Stream& stream, size_t until)
{
    while (stream.done < until && !stream.queue.empty())
    {
        Work const work = std::move(stream.queue.front());
        stream.queue.erase(stream.queue.begin());
        ++stream.done;
        work();
    }
}

inline void runAll()
{
    for (Stream* stream : state.streams)
    {
        run(*stream, ~size_t{0});
    }
}

//! Whether a call that this thread's captures do not allow is refused; they are invalid then.
inline bool isForbidden()
{
    bool found = false;
    for (Stream* stream : state.streams)
    {
        if (stream->captured != nullptr && stream->capturer == std::this_thread::get_id())
        {
            stream->isInvalid = true;
            found = true;
        }
    }
    return found;
}

inline Stream* find(CUstream handle)
{
    auto* const stream = reinterpret_cast<Stream*>(handle);
    if (state.streams.count(stream) == 0)
    {
        state.violated("a stream that is none");
        return nullptr;
    }
    return stream;
}

inline CUresult queue(CUstream handle, Work work)
{
    if (!isCurrent())
    {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    Stream* const stream = find(handle);
    if (stream == nullptr)
    {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    (stream->captured != nullptr ? *stream->captured : stream->queue).push_back(std::move(work));
    return CUDA_SUCCESS;
}

inline CUresult copy(void* to, bool toDevice, void const* from, bool fromDevice, size_t bytes, CUstream stream)
{
    void const* host = toDevice ? from : to;
    bool const isPageable = !(toDevice && fromDevice) && !holds(state.pinned, host, bytes);
    if (isPageable && isForbidden())
    {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    bool const isPinned = !(toDevice && fromDevice) && !isPageable;
    return queue(stream,
        [=]
        {
            if (toDevice)
            {
                expectDevice(to, bytes);
            }
            if (fromDevice)
            {
                expectDevice(from, bytes);
            }
            if (isPinned && !holds(state.pinned, host, bytes))
            {
                state.violated("pinned memory was freed before its copy");
                return;
            }
            std::memmove(to, from, bytes);
        });
}

inline void* pointer(CUdeviceptr address)
{
    return reinterpret_cast<void*>(address);
}

inline char* newMemory(std::map<char*, size_t>& pieces, size_t bytes)
{
    auto* const made = static_cast<char*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256)); // never reused
    kEver->push_back(made);
    std::memset(made, 0xFF, bytes);
    pieces[made] = bytes;
    return made;
}

template <typename T, typename... From>
T* newObject(std::set<T*>& known, From const&... from)
{
    auto* const made = new T(from...);
    kEver->push_back(made);
    known.insert(made);
    return made;
}

template <typename T>
CUresult destroy(std::set<T*>& known, void* handle, char const* what)
{
    if (!isCurrent())
    {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    auto const found = known.find(static_cast<T*>(handle));
    if (found == known.end())
    {
        state.violated(std::string("destroyed twice, or none: ") + what);
        return CUDA_ERROR_INVALID_HANDLE;
    }
    known.erase(found); // the object stays: handles are never reused
    return CUDA_SUCCESS;
}

} // namespace late

