#include "model.h"

#include "convert.h"
#include "glm_trt/errors.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <set>

namespace glm_trt
{
namespace
{

constexpr size_t kAlignment = 256;

size_t aligned(size_t bytes)
{
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

//! What a weight is made of: blocks that bind the same tensors alike share it (a head that is tied to the embedding).
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

size_t stateBytes(StateSpec const& spec, int64_t capacity, Dtype dtype)
{
    size_t bytes = sizeOf(spec.dtype.value_or(dtype));
    for (int64_t const axis : spec.axes)
    {
        bytes *= static_cast<size_t>(axis == kBatchAxis ? 1 : axis == kCapacityAxis ? capacity : axis);
    }
    return bytes;
}

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

//! Activations by the buffer that holds them. hidden goes to two by turns; the head has its own, of one token.
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

//! Every buffer but the weights, with its size.
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
    sizes["scratch"] = aligned(scratch);
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
                size = std::max(size, aligned(ioBytes(tensor, block.kind == "head" ? 1 : tokens)));
            }
        }
        for (auto const& spec : bundle.states(block.kind))
        {
            for (int turn = 0; turn < 2; ++turn)
            {
                sizes[stateBuffer(block, spec, turn)] = aligned(stateBytes(spec, bundle.maxSeqLen(), dtype));
            }
        }
    }
    return sizes;
}

} // namespace

std::vector<MemoryUse> memoryPlan(Bundle const& bundle, Engines const& engines, Dtype dtype)
{
    std::map<std::string, size_t> weights;
    for (auto const& block : bundle.blocks())
    {
        for (auto const& binding : block.bindings)
        {
            weights[madeOf(binding)] = aligned(boundBytes(binding, dtype));
        }
    }
    size_t ofWeights = 0;
    for (auto const& entry : weights)
    {
        ofWeights += entry.second;
    }
    size_t scratch = 0;
    size_t states = 0;
    size_t activations = 0;
    for (auto const& [name, bytes] : bufferSizes(bundle, engines, dtype))
    {
        bool const isOfState = name.find('.') != std::string::npos;
        (name == "scratch" ? scratch : isOfState ? states : activations) += bytes;
    }
    std::vector<MemoryUse> plan{
        {"weights", ofWeights}, {"states", states}, {"activations", activations}, {"engines' scratch", scratch}};
    std::stable_sort(
        plan.begin(), plan.end(), [](MemoryUse const& a, MemoryUse const& b) { return a.bytes > b.bytes; });
    return plan;
}

//! A block's two executions. Of its states, those that go by turns have addresses to be set in each pass.
struct Model::Layer
{
    struct Turning
    {
        std::string name;
        std::byte* buffers[2];
    };

    Block const* block;
    Engine* engine;
    std::unique_ptr<Execution> executions[2]; // of a profile
    std::vector<IoTensor> open;               // inputs whose shape follows the number of tokens
    std::vector<Turning> turning;
};

Model::Model(Bundle const& bundle, Engines engines, std::string const& dtype, Device& device)
    : mBundle(bundle)
    , mEngines(std::move(engines))
    , mDtype(dtypeOf(dtype).value())
    , mDevice(device)
    , mElementBytes(sizeOf(mDtype))
{
    for (auto const& entry : mEngines)
    {
        if (entry.first != "head")
        {
            int64_t const most = entry.second->maxTokens();
            mMaxTokens = mMaxTokens == 1 ? most : std::min(mMaxTokens, most);
        }
    }
    allocate(memoryPlan(bundle, mEngines, mDtype));
    bindWeights();
    for (size_t number = 0; number < bundle.blocks().size(); ++number)
    {
        Block const& block = bundle.blocks()[number];
        mLayers.push_back({&block, mEngines.at(block.kind).get(), {}, {}, {}});
        Layer& layer = mLayers.back();
        for (auto const& spec : bundle.states(block.kind))
        {
            if (!spec.hasCapacity())
            {
                layer.turning.push_back({spec.name,
                    {shared(stateBuffer(block, spec, 0)), shared(stateBuffer(block, spec, 1))}});
                mHasTurns = true;
            }
        }
        for (int profile = 0; profile < (mMaxTokens > 1 && block.kind != "head" ? 2 : 1); ++profile)
        {
            prepare(layer, number, profile);
        }
    }
    mLogits.resize(static_cast<size_t>(bundle.vocabSize()));
    mRaw.resize(mLogits.size() * mElementBytes);
    clearStates(true); // what memory held before may be NaN, which a product with 0 does not take away
}

Model::~Model() = default;

void Model::allocate(std::vector<MemoryUse> const& plan)
{
    size_t needed = 0;
    std::string parts;
    for (auto const& use : plan)
    {
        needed += use.bytes;
        parts += (parts.empty() ? "" : ", ") + use.what + " " + std::to_string(use.bytes);
    }
    size_t const free = mDevice.freeBytes();
    if (needed > free)
    {
        throw MissingCapabilityError("the GPU has too little memory: " + std::to_string(needed) + " bytes are needed ("
            + parts + "), " + std::to_string(free)
            + " are free; export with a smaller --max-seq-len, or use a larger GPU");
    }
    for (auto const& [name, bytes] : bufferSizes(mBundle, mEngines, mDtype))
    {
        mBuffers[name] = DeviceBuffer(mDevice, bytes);
    }
}

//! Tensor after tensor: the host holds one at a time.
void Model::bindWeights()
{
    std::vector<std::byte> host;
    for (auto const& block : mBundle.blocks())
    {
        for (auto const& binding : block.bindings)
        {
            auto const key = madeOf(binding);
            if (mWeights.count(key) != 0)
            {
                continue;
            }
            host.resize(boundBytes(binding, mDtype));
            bindInto(binding, mBundle.weights(), mDtype, host.data());
            auto& buffer = mBuffers["weight\n" + key] = DeviceBuffer(mDevice, host.size());
            mDevice.upload(buffer.data(), host.data(), host.size());
            mWeights[key] = buffer.data();
        }
    }
    mDevice.synchronize();
}

std::byte* Model::shared(std::string const& name)
{
    return mBuffers.at(name).data();
}

//! An execution with all the addresses that stay.
void Model::prepare(Layer& layer, size_t number, int profile)
{
    Block const& block = *layer.block;
    auto& execution = layer.executions[profile] = layer.engine->execution(profile, shared("scratch"));
    std::map<std::string, std::byte*> addresses;
    for (auto const& binding : block.bindings)
    {
        addresses[binding.name] = mWeights.at(madeOf(binding));
    }
    for (auto const& spec : mBundle.states(block.kind))
    {
        addresses[spec.name] = shared(stateBuffer(block, spec, 0));
        addresses[spec.name + "_out"] = shared(stateBuffer(block, spec, 1)); // a cache's is the same
    }
    for (auto const& tensor : layer.engine->io())
    {
        auto const known = addresses.find(tensor.name);
        execution->setAddress(tensor.name,
            known != addresses.end() ? known->second : shared(bufferOf(block.kind, tensor.name, number)));
        bool const isOpen = std::find(tensor.shape.begin(), tensor.shape.end(), -1) != tensor.shape.end();
        if (tensor.isInput && isOpen)
        {
            if (profile == 0)
            {
                layer.open.push_back(tensor);
            }
            std::vector<int64_t> one = tensor.shape;
            std::replace(one.begin(), one.end(), int64_t{-1}, int64_t{1});
            if (profile == 0)
            {
                execution->setShape(tensor.name, one);
            }
        }
    }
}

std::vector<float> const& Model::append(std::vector<int64_t> const& ids)
{
    auto const count = static_cast<int64_t>(ids.size());
    if (count == 0)
    {
        throw Error("input_ids: expected one token at least");
    }
    for (int64_t const id : ids)
    {
        if (id < 0 || id >= mBundle.vocabSize())
        {
            throw Error("input_ids: expected ids below " + std::to_string(mBundle.vocabSize()) + ", found "
                + std::to_string(id));
        }
    }
    if (mLength + count > mBundle.maxSeqLen())
    {
        throw Error("sequence of " + std::to_string(mLength + count) + " tokens: the bundle was exported for "
            + std::to_string(mBundle.maxSeqLen()) + " (--max-seq-len)");
    }
    for (int64_t done = 0; done < count;)
    {
        int64_t const tokens = std::min(mMaxTokens, count - done);
        step(ids.data() + done, tokens);
        done += tokens;
    }
    readLogits();
    return mLogits;
}

//! One pass over `tokens` ids.
void Model::step(int64_t const* ids, int64_t tokens)
{
    mDevice.upload(shared("input_ids"), ids, static_cast<size_t>(tokens) * sizeof(int64_t));
    mDevice.upload(shared("past_lengths"), &mLength, sizeof mLength);
    if (mBuffers.count("lengths") != 0)
    {
        mDevice.upload(shared("lengths"), &tokens, sizeof tokens);
    }
    if (tokens == 1 && !mTriedRecording[mTurn])
    {
        mTriedRecording[mTurn] = true;
        // TensorRT may do some work at a first run that cannot be recorded; this is a run all the same.
        queue(1, mTurn);
        mRecorded[mTurn] = mDevice.record([this] { queue(1, mTurn); });
    }
    else if (tokens == 1 && mRecorded[mTurn] != nullptr)
    {
        mRecorded[mTurn]->launch();
    }
    else
    {
        queue(tokens, mTurn);
    }
    mLength += tokens;
    mTurn = mHasTurns ? 1 - mTurn : 0;
}

//! Every block in turn, and the head on the last token.
void Model::queue(int64_t tokens, int turn)
{
    int const profile = tokens == 1 ? 0 : 1;
    size_t const wide = static_cast<size_t>(mBundle.hiddenSize()) * mElementBytes;
    for (Layer& layer : mLayers)
    {
        bool const isHead = &layer == &mLayers.back();
        Execution& execution = *layer.executions[isHead ? 0 : profile];
        if (isHead)
        {
            std::byte const* hidden = shared("hidden" + std::to_string((mLayers.size() - 1) % 2));
            mDevice.copy(shared("last"), hidden + static_cast<size_t>(tokens - 1) * wide, wide);
        }
        else if (profile == 1)
        {
            for (auto const& tensor : layer.open)
            {
                std::vector<int64_t> shape = tensor.shape;
                std::replace(shape.begin(), shape.end(), int64_t{-1}, tokens);
                execution.setShape(tensor.name, shape);
            }
        }
        for (auto const& state : layer.turning)
        {
            execution.setAddress(state.name, state.buffers[turn]);
            execution.setAddress(state.name + "_out", state.buffers[1 - turn]);
        }
        execution.run();
    }
}

void Model::readLogits()
{
    mDevice.download(mRaw.data(), shared("logits"), mRaw.size());
    mDevice.synchronize();
    TensorView const view{mDtype, {static_cast<int64_t>(mLogits.size())}, mRaw.data(), mRaw.size()};
    convert(view, 0, mLogits.size(), Dtype::kFloat32, reinterpret_cast<std::byte*>(mLogits.data()));
}

void Model::reset()
{
    clearStates(false); // of a cache, what lies behind the length is never read
    mLength = 0;
    mTurn = 0;
}

void Model::clearStates(bool withCaches)
{
    for (Layer const& layer : mLayers)
    {
        for (auto const& spec : mBundle.states(layer.block->kind))
        {
            if (withCaches || !spec.hasCapacity())
            {
                size_t const bytes = stateBytes(spec, mBundle.maxSeqLen(), mDtype);
                mDevice.clear(shared(stateBuffer(*layer.block, spec, 0)), bytes);
            }
        }
    }
}

SavedStates Model::save()
{
    SavedStates saved{mLength, {}};
    for (Layer const& layer : mLayers)
    {
        for (auto const& spec : mBundle.states(layer.block->kind))
        {
            // A cache has one head, so its first positions lie together.
            size_t const bytes = stateBytes(spec, mLength, mDtype);
            size_t const place = saved.data.size();
            saved.data.resize(place + bytes);
            mDevice.download(saved.data.data() + place, shared(stateBuffer(*layer.block, spec, mTurn)), bytes);
            mDevice.synchronize(); // before the vector grows and moves
        }
    }
    return saved;
}

void Model::restore(SavedStates const& saved)
{
    size_t expected = 0;
    for (Layer const& layer : mLayers)
    {
        for (auto const& spec : mBundle.states(layer.block->kind))
        {
            expected += stateBytes(spec, saved.length, mDtype);
        }
    }
    if (saved.length < 0 || saved.length > mBundle.maxSeqLen() || saved.data.size() != expected)
    {
        throw Error("states: expected " + std::to_string(expected) + " bytes for " + std::to_string(saved.length)
            + " tokens, found " + std::to_string(saved.data.size()));
    }
    std::byte const* next = saved.data.data();
    mTurn = 0;
    for (Layer const& layer : mLayers)
    {
        for (auto const& spec : mBundle.states(layer.block->kind))
        {
            size_t const bytes = stateBytes(spec, saved.length, mDtype);
            mDevice.upload(shared(stateBuffer(*layer.block, spec, 0)), next, bytes);
            next += bytes;
        }
    }
    mLength = saved.length;
}

} // namespace glm_trt
