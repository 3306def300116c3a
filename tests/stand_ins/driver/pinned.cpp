// Pinned host memory: between guards too, and never used twice.
#include "memory.h"

#include <cstring>
#include <iterator>
#include <map>
#include <sys/mman.h>

namespace stand_in
{
namespace
{

constexpr uint64_t kPage = 4096;
constexpr uint64_t kAlignment = 256;
constexpr int kFilling = 0xFF;

// Made for good: what is left of them is told of late in the process' end.
auto& gPinned = *new std::map<uint64_t, uint64_t>;
auto& gPinnedBefore = *new std::map<uint64_t, uint64_t>;

uint64_t roundUp(uint64_t bytes, uint64_t to)
{
    return (bytes + to - 1) / to * to;
}

void protect(uint64_t start, uint64_t end, int protection)
{
    mprotect(reinterpret_cast<void*>(start), end - start, protection);
}

} // namespace

void* allocatePinned(size_t bytes)
{
    uint64_t const rounded = roundUp(bytes, kAlignment);
    uint64_t const whole = roundUp(rounded, kPage);
    void* const made
        = mmap(nullptr, whole + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (made == MAP_FAILED)
    {
        return nullptr;
    }
    uint64_t const first = reinterpret_cast<uint64_t>(made) + kPage;
    protect(first, first + whole, PROT_READ | PROT_WRITE);
    std::memset(reinterpret_cast<void*>(first), kFilling, whole);
    uint64_t const start = first + whole - rounded;
    gPinned[start] = bytes;
    return reinterpret_cast<void*>(start);
}

bool releasePinned(void* address)
{
    auto const found = gPinned.find(reinterpret_cast<uint64_t>(address));
    if (found == gPinned.end())
    {
        return false;
    }
    uint64_t const first = found->first / kPage * kPage;
    uint64_t const end = roundUp(found->first + found->second, kPage);
    // It stays mapped, so that no other memory comes there.
    madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
    protect(first, end, PROT_NONE);
    gPinnedBefore.insert(*found);
    gPinned.erase(found);
    return true;
}

HostKind hostKind(void const* address, size_t bytes)
{
    auto const at = reinterpret_cast<uint64_t>(address);
    auto const within = [at](std::map<uint64_t, uint64_t> const& pieces) {
        auto const after = pieces.upper_bound(at);
        bool const isIn = after != pieces.begin() && at < std::prev(after)->first + std::prev(after)->second;
        return isIn ? std::prev(after) : pieces.end();
    };
    if (auto const found = within(gPinned); found != gPinned.end())
    {
        return at + bytes <= found->first + found->second ? HostKind::kPINNED : HostKind::kBEYOND;
    }
    return within(gPinnedBefore) != gPinnedBefore.end() ? HostKind::kFREED : HostKind::kPAGEABLE;
}

bool isMapped(void const* address, size_t bytes)
{
    auto const first = reinterpret_cast<uint64_t>(address) / kPage * kPage;
    auto const end = roundUp(reinterpret_cast<uint64_t>(address) + bytes, kPage);
    // msync: ENOMEM where "the indicated memory (or part of it) was not mapped".
    return bytes == 0 || msync(reinterpret_cast<void*>(first), end - first, MS_ASYNC) == 0;
}

std::vector<Range> livePinned()
{
    std::vector<Range> found;
    for (auto const& [start, bytes] : gPinned)
    {
        found.push_back({start, bytes});
    }
    return found;
}

} // namespace stand_in
