#include "engine_states.h"

#include "glm_trt/errors.h"

#include <algorithm>

namespace glm_trt
{
namespace
{

std::string described(std::vector<int64_t> const& shape, size_t elementBytes)
{
    return asTuple(shape) + " of " + std::to_string(elementBytes) + " bytes each";
}

void requireState(std::string const& place, Engine const& engine, IoTensor const& wanted)
{
    auto const& io = engine.io();
    auto const found = std::find_if(io.begin(), io.end(),
        [&](IoTensor const& tensor) { return tensor.name == wanted.name && tensor.isInput == wanted.isInput; });
    std::string const expected = place + ": " + wanted.name + ": by the manifest's states expected "
        + described(wanted.shape, wanted.elementBytes);
    if (found == io.end())
    {
        throw BundleError(expected + ", found none");
    }
    if (found->shape != wanted.shape || found->elementBytes != wanted.elementBytes)
    {
        throw BundleError(expected + ", found " + described(found->shape, found->elementBytes));
    }
}

} // namespace

void requireStates(
    Bundle const& bundle, std::map<std::string, std::shared_ptr<Engine>> const& engines, Dtype dtype)
{
    for (auto const& [kind, engine] : engines)
    {
        for (auto const& spec : bundle.states(kind))
        {
            std::vector<int64_t> shape = spec.axes;
            std::replace(shape.begin(), shape.end(), kBatchAxis, int64_t{1});
            std::replace(shape.begin(), shape.end(), kCapacityAxis, bundle.maxSeqLen());
            size_t const bytes = sizeOf(spec.dtype.value_or(dtype));
            std::string const place = bundle.directory().string() + ": engine of " + kind;
            requireState(place, *engine, {spec.name, true, bytes, shape});
            requireState(place, *engine, {spec.name + "_out", false, bytes, shape});
        }
    }
}

} // namespace glm_trt
