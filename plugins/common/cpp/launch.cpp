#include "operators.h"

#include <limits>
#include <string>

namespace glm_trt
{

Error launchChecked(Call const& call, Kernel const& kernel, int64_t const (&grid)[3],
    std::initializer_list<int64_t> integers, void** parameters)
{
    // The limits of cuLaunchKernel's grid.
    constexpr int64_t kLimits[3] = {0x7FFFFFFF, 65535, 65535};
    uint32_t sizes[3];
    for (int32_t i = 0; i < 3; ++i)
    {
        if (grid[i] < 0 || grid[i] > kLimits[i])
        {
            return std::string(kernel.entry) + ": grid dimension " + std::to_string(i) + " would be "
                + std::to_string(grid[i]);
        }
        sizes[i] = static_cast<uint32_t>(grid[i]);
    }
    for (int64_t const integer : integers)
    {
        if (integer < std::numeric_limits<int32_t>::min() || integer > std::numeric_limits<int32_t>::max())
        {
            return std::string(kernel.entry) + ": argument " + std::to_string(integer) + " exceeds 32 bits";
        }
    }
    return call.prepareOnly ? prepareKernel(kernel) : launchKernel(kernel, sizes, parameters, call.stream);
}

} // namespace glm_trt
