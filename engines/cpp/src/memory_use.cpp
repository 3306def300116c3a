#include "memory_use.h"

#include "glm_trt/errors.h"
#include "weights.h"

#include <algorithm>
#include <numeric>
#include <set>

namespace glm_trt
{

size_t stateBytes(StateSpec const& spec, int64_t capacity, Dtype dtype)
{
    size_t bytes = sizeOf(spec.dtype.value_or(dtype));
    for (int64_t const axis : spec.axes)
    {
        bytes *= static_cast<size_t>(axis == kBatchAxis ? 1 : axis == kCapacityAxis ? capacity : axis);
    }
    return bytes;
}

namespace
{

//! Of an input or output for `tokens`, its only open axis.
size_t ioBytes(IoTensor const& tensor, int64_t tokens)
{
    return std::accumulate(tensor.shape.begin(), tensor.shape.end(), tensor.elementBytes,
        [&](size_t bytes, int64_t size) { return bytes * static_cast<size_t>(size < 0 ? tokens : size); });
}

bool isState(Bundle const& bundle, std::string const& kind, std::string name)
{
    constexpr char kOut[] = "_out";
    if (name.size() > 4 && name.compare(name.size() - 4, 4, kOut) == 0)
    {
        name.resize(name.size() - 4);
    }
    auto const& states = bundle.states(kind);
    return std::any_of(states.begin(), states.end(), [&](StateSpec const& spec) { return spec.name == name; });
}

} // namespace

std::string bufferOf(std::string const& kind, std::string const& name, size_t number)
{
    if (kind == "head" && name == "hidden")
    {
        return "last";
    }
    if (name == "hidden" || name == "hidden_out")
    {
        return "hidden" + std::to_string((number + (name == "hidden_out")) % 2);
    }
    // Of the latest layer with an indexer, for those behind it that have none.
    return name == "shared_indices" ? "topk_indices" : name;
}

std::string stateBuffer(Block const& block, StateSpec const& spec, int turn)
{
    return block.name + "." + spec.name + (spec.hasCapacity() ? "" : "." + std::to_string(turn));
}

std::map<std::string, size_t> bufferSizes(Bundle const& bundle, Engines const& engines, Dtype dtype)
{
    std::map<std::string, size_t> sizes;
    int64_t tokens = 1;
    size_t scratch = 0;
    for (auto const& entry : engines)
    {
        tokens = std::max(tokens, entry.second->maxTokens());
        scratch = std::max(scratch, entry.second->scratchBytes());
    }
    sizes["scratch"] = alignedBytes(scratch);
    auto const& blocks = bundle.blocks();
    for (size_t number = 0; number < blocks.size(); ++number)
    {
        Block const& block = blocks[number];
        std::set<std::string> weights;
        for (auto const& binding : block.bindings)
        {
            weights.insert(binding.name);
        }
        for (auto const& tensor : engines.at(block.kind)->io())
        {
            if (weights.count(tensor.name) == 0 && !isState(bundle, block.kind, tensor.name))
            {
                size_t& size = sizes[bufferOf(block.kind, tensor.name, number)];
                size = std::max(size, alignedBytes(ioBytes(tensor, block.kind == "head" ? 1 : tokens)));
            }
        }
        for (auto const& spec : bundle.states(block.kind))
        {
            for (int turn = 0; turn < 2; ++turn)
            {
                sizes[stateBuffer(block, spec, turn)] = alignedBytes(stateBytes(spec, bundle.maxSeqLen(), dtype));
            }
        }
    }
    return sizes;
}

namespace
{

std::vector<MemoryUse> largestFirst(std::vector<MemoryUse> uses)
{
    std::stable_sort(
        uses.begin(), uses.end(), [](MemoryUse const& a, MemoryUse const& b) { return a.bytes > b.bytes; });
    return uses;
}

} // namespace

std::vector<MemoryUse> sequenceMemory(Bundle const& bundle, Engines const& engines, Dtype dtype)
{
    size_t scratch = 0;
    size_t states = 0;
    size_t activations = 0;
    for (auto const& [name, bytes] : bufferSizes(bundle, engines, dtype))
    {
        bool const isOfState = name.find('.') != std::string::npos;
        (name == "scratch" ? scratch : isOfState ? states : activations) += bytes;
    }
    return largestFirst({{"states", states}, {"activations", activations}, {"engines' scratch", scratch}});
}

std::vector<MemoryUse> wholeMemory(Bundle const& bundle, Engines const& engines, Dtype dtype)
{
    std::vector<MemoryUse> uses = sequenceMemory(bundle, engines, dtype);
    uses.insert(uses.begin(), {"weights", DeviceWeights::bytes(bundle, dtype)});
    return largestFirst(std::move(uses));
}

void requireMemory(Device& device, std::vector<MemoryUse> const& uses)
{
    size_t needed = 0;
    std::string parts;
    for (auto const& use : uses)
    {
        needed += use.bytes;
        parts += (parts.empty() ? "" : ", ") + use.what + " " + std::to_string(use.bytes);
    }
    size_t const free = device.freeBytes();
    if (needed > free)
    {
        throw MissingCapabilityError("the GPU has too little memory: " + std::to_string(needed) + " bytes are needed ("
            + parts + "), " + std::to_string(free)
            + " are free; export with a smaller --max-seq-len, or use a larger GPU");
    }
}

} // namespace glm_trt
