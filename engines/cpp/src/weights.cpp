#include "weights.h"

#include "bindings.h"

#include <set>
#include <utility>
#include <vector>

namespace glm_trt
{
namespace
{

//! What a weight is made of.
std::string madeOf(Binding const& binding)
{
    std::string key = binding.transform;
    for (auto const& name : binding.tensors)
    {
        key += '\n' + name;
    }
    for (auto const& [name, value] : binding.arguments)
    {
        key += '\n' + name + '=' + std::to_string(value);
    }
    return key + (binding.dtype ? nameOf(*binding.dtype) : "");
}

//! The distinct ones in the order of the blocks, with what each is made of.
std::vector<std::pair<std::string, Binding const*>> distinct(Bundle const& bundle)
{
    std::vector<std::pair<std::string, Binding const*>> found;
    std::set<std::string> known;
    for (auto const& block : bundle.blocks())
    {
        for (auto const& binding : block.bindings)
        {
            if (std::string key = madeOf(binding); known.insert(key).second)
            {
                found.emplace_back(std::move(key), &binding);
            }
        }
    }
    return found;
}

} // namespace

DeviceWeights::DeviceWeights(Bundle const& bundle, Dtype dtype, Device& device)
{
    CurrentDevice const current(device);
    std::vector<std::byte> host;
    for (auto const& [key, binding] : distinct(bundle))
    {
        host.resize(boundBytes(*binding, dtype));
        bindInto(*binding, bundle.weights(), dtype, host.data());
        auto const& buffer = mBuffers[key] = DeviceBuffer(device, host.size());
        device.upload(buffer.data(), host.data(), host.size());
    }
}

std::byte* DeviceWeights::at(Binding const& binding) const
{
    return mBuffers.at(madeOf(binding)).data();
}

size_t DeviceWeights::bytes(Bundle const& bundle, Dtype dtype)
{
    size_t sum = 0;
    for (auto const& [key, binding] : distinct(bundle))
    {
        sum += alignedBytes(boundBytes(*binding, dtype));
    }
    return sum;
}

} // namespace glm_trt
