// What blocks of each architecture may have. CUDA C++ Programming Guide, "Compute Capabilities": maximum amount of shared
// memory a thread block (opt-in), in bytes.
#pragma once

#include <cstddef>

namespace stand_in
{

struct Limits
{
    int capability;
    int sharedOptIn;
};

constexpr int kSharedWithoutAsking = 48 * 1024;
constexpr unsigned kThreadsOfBlock = 1024;
//! cuLaunchKernel: the sizes of a grid.
constexpr unsigned kGrid[3] = {0x7FFFFFFF, 65535, 65535};

constexpr Limits kLimits[] = {{75, 64 * 1024}, {80, 163 * 1024}, {86, 99 * 1024}, {89, 99 * 1024}, {90, 227 * 1024}, {100, 227 * 1024},
    {103, 227 * 1024}, {120, 99 * 1024}};

inline Limits const* limitsOf(int capability)
{
    for (Limits const& limits : kLimits)
    {
        if (limits.capability == capability)
        {
            return &limits;
        }
    }
    return nullptr;
}

} // namespace stand_in
