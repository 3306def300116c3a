#include "memory.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

namespace stand_in
{
namespace
{

constexpr uint64_t kPage = 4096;
constexpr uint64_t kAlignment = 256; // TensorRT wants it; cuMemAlloc: "suitably aligned for any kind of variable"
constexpr uint64_t kGuard = 256 * 1024;
// Above 4 GiB by far: an address of which 32 bits are lost is never one of these.
#ifdef __SANITIZE_THREAD__ // it leaves programs some ranges alone
constexpr uint64_t kArenaBytes = uint64_t{1} << 35;
constexpr uint64_t kArenaAddress = 0x7e9000000000;
#else
constexpr uint64_t kArenaBytes = uint64_t{1} << 40;
constexpr uint64_t kArenaAddress = 0x200000000000;
#endif
constexpr uint64_t kTableBytes = uint64_t{16} << 20;
constexpr unsigned char kFilling = 0xFF; // a NaN in every float format, -1 in the integers
constexpr size_t kMaxStrays = 64;

//! At the arena's beginning, so that an executor sees it too. Sorted, as addresses only grow.
struct Table
{
    uint64_t next;  //!< free address
    uint64_t count; //!< of entries
    struct Entry
    {
        uint64_t start;
        uint64_t bytes;
        uint64_t isLive;
    } entries[1];
};

int gDescriptor = -1;
uint64_t gAddress = 0;
uint64_t gBytes = 0;
Table* gTable = nullptr;
struct sigaction gFormerly;
bool gIsExecutor = false;
thread_local int gDepth = 0;
thread_local std::string gWhat;
// Written by the signal handler.
uint64_t gStrays[kMaxStrays];
size_t gStrayCount = 0;
uint64_t gOpened[4096]; // entries
size_t gOpenedCount = 0;

uint64_t roundUp(uint64_t bytes, uint64_t to)
{
    return (bytes + to - 1) / to * to;
}

//! The last entry that begins at or before the address, or nullptr.
Table::Entry* entryBefore(uint64_t address)
{
    if (gTable == nullptr)
    {
        return nullptr;
    }
    Table::Entry* const end = gTable->entries + gTable->count;
    Table::Entry* const after = std::upper_bound(gTable->entries, end, address,
        [](uint64_t value, Table::Entry const& entry) { return value < entry.start; });
    return after == gTable->entries ? nullptr : after - 1;
}

uint64_t firstPage(Table::Entry const& entry)
{
    return entry.start / kPage * kPage;
}

uint64_t endPage(Table::Entry const& entry)
{
    return roundUp(entry.start + entry.bytes, kPage);
}

void protect(uint64_t start, uint64_t end, int protection)
{
    mprotect(reinterpret_cast<void*>(start), end - start, protection);
}

//! Opens what device work touches. A stray access is noted, its page opened, and the work goes on: the fault is reported
//! when the work has ended, as a GPU does.
void onFault(int signal, siginfo_t* info, void* context)
{
    auto const address = reinterpret_cast<uint64_t>(info->si_addr);
    if (signal == SIGSEGV && isInArena(address) && isDevice())
    {
        for (Table::Entry* entry = entryBefore(address + kPage); entry != nullptr && entry >= gTable->entries; --entry)
        {
            // A page that an allocation begins in may be touched before that allocation: bytes there are watched.
            if (entry->isLive != 0 && firstPage(*entry) <= address && address < endPage(*entry))
            {
                protect(firstPage(*entry), endPage(*entry), PROT_READ | PROT_WRITE);
                if (gOpenedCount < sizeof gOpened / sizeof *gOpened)
                {
                    gOpened[gOpenedCount++] = static_cast<uint64_t>(entry - gTable->entries);
                }
                return;
            }
            if (endPage(*entry) <= address)
            {
                break;
            }
        }
        if (gStrayCount < kMaxStrays)
        {
            gStrays[gStrayCount++] = address;
        }
        protect(address / kPage * kPage, address / kPage * kPage + kPage, PROT_READ | PROT_WRITE);
        return;
    }
    if (isInArena(address))
    {
        static char const kText[] = "stand-in driver: host-access: the host touched device memory\n";
        [[maybe_unused]] auto const written = write(2, kText, sizeof kText - 1);
    }
    sigaction(SIGSEGV, &gFormerly, nullptr); // the instruction comes again, and so does the fault
    (void) context;
}

void watchFaults()
{
    struct sigaction action{};
    action.sa_sigaction = onFault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &gFormerly);
}

void map(uint64_t address, int flags)
{
    void* const wanted = reinterpret_cast<void*>(address);
    void* const found = mmap(wanted, gBytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE | flags, gDescriptor, 0);
    if (found != wanted)
    {
        std::fprintf(stderr, "stand-in driver: no room for device memory at %s: %s\n", hex(address).c_str(),
            std::strerror(errno));
        std::abort();
    }
    gAddress = address;
    gTable = reinterpret_cast<Table*>(address);
    protect(address, address + kTableBytes, PROT_READ | PROT_WRITE);
    watchFaults();
}

//! Whether the bytes that lie between an allocation and its guards are as they were.
bool isPadSound(Table::Entry const& entry)
{
    auto const isFilled = [](uint64_t from, uint64_t to) {
        auto const* const bytes = reinterpret_cast<unsigned char const*>(from);
        return std::all_of(bytes, bytes + (to - from), [](unsigned char byte) { return byte == kFilling; });
    };
    return isFilled(firstPage(entry), entry.start) && isFilled(entry.start + entry.bytes, endPage(entry));
}

std::string named(Table::Entry const& entry)
{
    return std::to_string(entry.bytes) + " bytes at " + hex(entry.start);
}

//! The memory is open now.
void checkPad(Table::Entry const& entry, std::string const& what)
{
    if (isPadSound(entry))
    {
        return;
    }
    violated("out-of-bounds", what + ": wrote beside " + named(entry));
    fault(CUDA_ERROR_ILLEGAL_ADDRESS);
    std::memset(reinterpret_cast<void*>(firstPage(entry)), kFilling, entry.start - firstPage(entry));
    uint64_t const end = entry.start + entry.bytes;
    std::memset(reinterpret_cast<void*>(end), kFilling, endPage(entry) - end);
}

void closeWork()
{
    for (size_t i = 0; i < gOpenedCount; ++i)
    {
        Table::Entry& entry = gTable->entries[gOpened[i]];
        if (entry.isLive == 0)
        {
            continue;
        }
        checkPad(entry, gWhat);
        protect(firstPage(entry), endPage(entry), PROT_NONE);
    }
    gOpenedCount = 0;
    straysFound(takeStrays(), gWhat);
}

} // namespace

void openArena()
{
    if (gTable != nullptr)
    {
        return;
    }
    gDescriptor = memfd_create("stand-in device memory", MFD_CLOEXEC);
    gBytes = kArenaBytes;
    if (gDescriptor < 0 || ftruncate(gDescriptor, static_cast<off_t>(gBytes)) != 0)
    {
        std::fprintf(stderr, "stand-in driver: no memory file: %s\n", std::strerror(errno));
        std::abort();
    }
    map(kArenaAddress, MAP_FIXED_NOREPLACE);
    gTable->next = kArenaAddress + kTableBytes + kGuard;
}

void attachArena(int descriptor, uint64_t address, uint64_t bytes)
{
    gDescriptor = descriptor;
    gBytes = bytes;
    map(address, MAP_FIXED_NOREPLACE);
    alwaysDevice();
}

int arenaDescriptor()
{
    return gDescriptor;
}

Range arenaRange()
{
    return {gAddress, gBytes};
}

uint64_t allocate(size_t bytes)
{
    uint64_t const rounded = roundUp(bytes, kAlignment);
    if (rounded > bytesLeft())
    {
        return 0;
    }
    uint64_t const end = roundUp(gTable->next + rounded, kPage);
    size_t const capacity = (kTableBytes - sizeof(Table)) / sizeof(Table::Entry);
    if (end + kGuard > gAddress + gBytes || gTable->count == capacity)
    {
        std::fprintf(stderr, "stand-in driver: all addresses are used up\n");
        std::abort();
    }
    Table::Entry const entry{end - rounded, bytes, 1};
    protect(firstPage(entry), end, PROT_READ | PROT_WRITE);
    std::memset(reinterpret_cast<void*>(firstPage(entry)), kFilling, end - firstPage(entry));
    protect(firstPage(entry), end, PROT_NONE);
    gTable->entries[gTable->count++] = entry;
    gTable->next = end + kGuard;
    return entry.start;
}

bool release(uint64_t address)
{
    Table::Entry* const entry = entryBefore(address);
    if (entry == nullptr || entry->start != address || entry->isLive == 0)
    {
        return false;
    }
    entry->isLive = 0;
    protect(firstPage(*entry), endPage(*entry), PROT_NONE);
    fallocate(gDescriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(firstPage(*entry) - gAddress),
        static_cast<off_t>(endPage(*entry) - firstPage(*entry)));
    return true;
}

Range const* holder(uint64_t address, uint64_t bytes)
{
    Table::Entry const* const entry = entryBefore(address);
    bool const isInside = entry != nullptr && entry->isLive != 0 && address - entry->start <= entry->bytes
        && bytes <= entry->bytes - (address - entry->start);
    static thread_local Range found;
    if (isInside)
    {
        found = {entry->start, entry->bytes};
    }
    return isInside ? &found : nullptr;
}

bool holds(uint64_t address, uint64_t bytes, std::string const& what)
{
    if (holder(address, bytes) != nullptr)
    {
        return true;
    }
    violated("not-allocated", what + ": " + std::to_string(bytes) + " bytes at " + describe(address));
    return false;
}

std::string describe(uint64_t address)
{
    if (!isInArena(address))
    {
        return hex(address) + ", which is no device memory";
    }
    Table::Entry const* const entry = entryBefore(address);
    if (entry == nullptr)
    {
        return hex(address) + ", before all device memory";
    }
    std::string const offset = std::to_string(address - entry->start);
    std::string const of = (entry->isLive != 0 ? "" : "freed: ") + named(*entry);
    return hex(address) + ", byte " + offset + " of " + of;
}

bool isInArena(uint64_t address)
{
    return gTable != nullptr && address >= gAddress && address < gAddress + gBytes;
}

size_t bytesLeft()
{
    size_t used = 0;
    for (Range const& range : liveMemory())
    {
        used += roundUp(range.bytes, kAlignment);
    }
    return used > settings().memory ? 0 : settings().memory - used;
}

std::vector<Range> liveMemory()
{
    std::vector<Range> found;
    for (uint64_t i = 0; gTable != nullptr && i < gTable->count; ++i)
    {
        if (gTable->entries[i].isLive != 0)
        {
            found.push_back({gTable->entries[i].start, gTable->entries[i].bytes});
        }
    }
    return found;
}

DeviceWork::DeviceWork(std::string what)
    : mOuter(std::exchange(gWhat, std::move(what)))
{
    ++gDepth;
}

DeviceWork::~DeviceWork()
{
    closeWork();
    --gDepth;
    gWhat = std::move(mOuter);
}

bool isDevice()
{
    return gIsExecutor || gDepth > 0;
}

std::vector<uint64_t> takeStrays()
{
    std::vector<uint64_t> const found(gStrays, gStrays + gStrayCount);
    for (uint64_t const address : found)
    {
        protect(address / kPage * kPage, address / kPage * kPage + kPage, PROT_NONE);
    }
    gStrayCount = 0;
    return found;
}

void alwaysDevice()
{
    gIsExecutor = true;
}

void checkPads(std::string const& what)
{
    for (uint64_t i = 0; i < gTable->count; ++i)
    {
        Table::Entry const& entry = gTable->entries[i];
        if (entry.isLive != 0)
        {
            protect(firstPage(entry), endPage(entry), PROT_READ | PROT_WRITE);
            checkPad(entry, what);
            protect(firstPage(entry), endPage(entry), PROT_NONE);
        }
    }
}

void straysFound(std::vector<uint64_t> const& addresses, std::string const& what)
{
    for (uint64_t const address : addresses)
    {
        violated("out-of-bounds", what + ": touched " + describe(address));
        fault(CUDA_ERROR_ILLEGAL_ADDRESS);
    }
}

} // namespace stand_in
