// Device memory: one arena of addresses that are never used twice, every allocation between guards.
#pragma once

#include "report.h"

#include <string>
#include <vector>

namespace stand_in
{

struct Range
{
    uint64_t start;
    uint64_t bytes;
};

//! Make the arena where this process has none yet; in an executor, map the one of its parent.
void openArena();
void attachArena(int descriptor, uint64_t address, uint64_t bytes);
int arenaDescriptor();
Range arenaRange();

//! 0 where the device has no room.
uint64_t allocate(size_t bytes);
//! False where no allocation starts there.
bool release(uint64_t address);
//! The live allocation that all of it lies in, or nullptr.
Range const* holder(uint64_t address, uint64_t bytes);
//! holder(), and a violation where there is none: `what` wanted it.
bool holds(uint64_t address, uint64_t bytes, std::string const& what);
//! What `address` is, for messages: in which allocation, live or freed, or beyond which.
std::string describe(uint64_t address);
bool isInArena(uint64_t address);
size_t bytesLeft();
std::vector<Range> liveMemory();

//! While one is there, this thread is the device: it may touch what is allocated. What it touched beside, and bytes
//! that changed between an allocation and its guards, are violations and a fault when the last one goes.
class DeviceWork
{
public:
    explicit DeviceWork(std::string what);
    ~DeviceWork();
    DeviceWork(DeviceWork const&) = delete;
    DeviceWork& operator=(DeviceWork const&) = delete;

private:
    std::string mOuter;
};

//! Whether this thread does device work now.
bool isDevice();
//! Addresses that an executor's work touched and nothing is allocated at; they are forgotten.
std::vector<uint64_t> takeStrays();
//! Lay bare for an executor, which does nothing but device work.
void alwaysDevice();
//! The bytes beside every allocation, after another process worked on some.
void checkPads(std::string const& what);
void straysFound(std::vector<uint64_t> const& addresses, std::string const& what);

//! Pinned host memory, which is never used twice either.
void* allocatePinned(size_t bytes);
bool releasePinned(void* address);
enum class HostKind
{
    kPAGEABLE,
    kPINNED,
    kFREED, //!< was pinned
    kBEYOND //!< begins in pinned memory and ends beyond it
};
HostKind hostKind(void const* address, size_t bytes);
//! Whether the process has it mapped at all.
bool isMapped(void const* address, size_t bytes);
std::vector<Range> livePinned();

} // namespace stand_in
