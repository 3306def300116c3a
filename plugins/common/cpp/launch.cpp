#include "operators.h"

#include <limits>
#include <string>

namespace glm_trt
{
namespace
{

char const* nameOf(Dtype dtype)
{
    return dtype == Dtype::kFLOAT16 ? "float16" : dtype == Dtype::kBFLOAT16 ? "bfloat16" : "float32";
}

} // namespace

Error absentKernel(Operator const& op, Call const& call, char const* kernel,
    std::initializer_list<std::pair<char const*, int64_t>> constants)
{
    Types const& types = op.types[call.types];
    std::string what = std::string(op.name) + ": no kernel " + kernel + " for sm"
        + std::to_string(kTargets[call.target]) + " in " + nameOf(types.activation);
    if (types.state != types.activation)
    {
        what += std::string(" with a state in ") + nameOf(types.state);
    }
    for (auto const& [name, value] : constants)
    {
        what += std::string(", ") + name + " = " + std::to_string(value);
    }
    return what + ": this library holds only what some graphs need on " + kTargetNames
        + "; build the whole one (make plugins)";
}

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
