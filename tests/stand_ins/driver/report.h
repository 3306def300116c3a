// What is set, what was found wrong, and the one lock: every call of the stand-in holds it.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <random>
#include <string>

#define STAND_IN_EXPORT extern "C" __attribute__((visibility("default")))

namespace stand_in
{

//! From the environment at cuInit; `standInConfigure` changes them.
struct Settings
{
    int capability{80};
    size_t memory{size_t{1} << 30};
    std::string kernels; //!< kernels.json of the plugin library
    std::string report;
    std::string fail; //!< NAME:N, the Nth call of NAME finds no memory
};

using Lock = std::lock_guard<std::recursive_mutex>;
std::recursive_mutex& lock();

Settings& settings();
std::mt19937_64& randomness();
size_t randomBelow(size_t count);

void readEnvironment();
//! Take settings from a flat JSON object; nothing of it is kept where a name is unknown.
void configure(std::string const& json);

//! Something that no right program does.
void violated(char const* rule, std::string const& what);
//! The lines so far; they are forgotten, and so is the fault of a kernel.
std::string takeViolations();
bool isViolated();

//! The error that a kernel left behind: every later call has it (CUDA Driver API, CUDA_ERROR_ILLEGAL_ADDRESS: "leaves
//! the process in an inconsistent state and any further CUDA work will return the same error").
void fault(CUresult result);
CUresult faultSoFar();

//! Whether the Nth call of this name is to find no memory.
bool mustFail(char const* name);

//! "0x200000001000"
std::string hex(uint64_t value);

} // namespace stand_in
