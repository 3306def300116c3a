#include "model.h"

#include "convert.h"
#include "engine_states.h"
#include "glm_trt/errors.h"

#include <algorithm>
#include <limits>

namespace glm_trt
{
namespace
{

//! Of a pass: what every block can take.
int64_t mostTokens(Engines const& engines)
{
    int64_t most = std::numeric_limits<int64_t>::max();
    for (auto const& [kind, engine] : engines)
    {
        if (kind != "head")
        {
            most = std::min(most, engine->maxTokens());
        }
    }
    return most;
}

} // namespace

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

Model::Model(Bundle const& bundle, Engines engines, DeviceWeights const& weights, std::string const& dtype,
    Device& device)
    : mBundle(bundle)
    , mEngines(std::move(engines))
    , mWeights(weights)
    , mDtype(dtypeOf(dtype).value())
    , mDevice(device)
    , mMaxTokens(mostTokens(mEngines))
    , mElementBytes(sizeOf(mDtype))
{
    CurrentDevice const current(mDevice);
    try
    {
        open();
    }
    catch (...)
    {
        close(); // while the device is current
        throw;
    }
}

Model::~Model()
{
    whileCurrent(mDevice, [this] { close(); });
}

void Model::open()
{
    requireStates(mBundle, mEngines, mDtype);
    allocate();
    for (size_t number = 0; number < mBundle.blocks().size(); ++number)
    {
        Block const& block = mBundle.blocks()[number];
        mLayers.push_back({&block, mEngines.at(block.kind).get(), {}, {}, {}});
        Layer& layer = mLayers.back();
        for (auto const& spec : mBundle.states(block.kind))
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
    mLogits.resize(static_cast<size_t>(mBundle.manifest().model.vocabSize));
    mRaw.resize(mLogits.size() * mElementBytes);
    clearStates(true); // what memory held before may be NaN, which a product with 0 does not take away
}

//! What replays before what it replays, what uses memory before the memory, and nothing while it is at work.
void Model::close() noexcept
{
    try
    {
        mDevice.synchronize();
    }
    catch (...)
    {
        // A device that failed does nothing any more.
    }
    for (auto& recorded : mRecorded)
    {
        recorded.reset();
    }
    mLayers.clear();
    mBuffers.clear();
}

void Model::allocate()
{
    requireMemory(mDevice, sequenceMemory(mBundle, mEngines, mDtype));
    for (auto const& [name, bytes] : bufferSizes(mBundle, mEngines, mDtype))
    {
        mBuffers[name] = DeviceBuffer(mDevice, bytes);
    }
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
        addresses[binding.name] = mWeights.at(binding);
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
        if (id < 0 || id >= mBundle.manifest().model.vocabSize)
        {
            throw Error("input_ids: expected ids below " + std::to_string(mBundle.manifest().model.vocabSize) + ", found "
                + std::to_string(id));
        }
    }
    if (mLength + count > mBundle.maxSeqLen())
    {
        throw Error("sequence of " + std::to_string(mLength + count) + " tokens: the bundle was exported for "
            + std::to_string(mBundle.maxSeqLen()) + " (--max-seq-len)");
    }
    CurrentDevice const current(mDevice);
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
        // TensorRT may do some work at a first run that cannot be recorded; this is a run all the same.
        queue(1, mTurn);
        mRecorded[mTurn] = mDevice.record([this] { queue(1, mTurn); });
        mTriedRecording[mTurn] = true;
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
    size_t const wide = static_cast<size_t>(mBundle.manifest().model.hiddenSize) * mElementBytes;
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
    TensorView const view{mDtype, {static_cast<int64_t>(mLogits.size())}, mRaw.data(), mRaw.size()};
    convert(view, 0, mLogits.size(), Dtype::kFloat32, reinterpret_cast<std::byte*>(mLogits.data()));
}

void Model::reset()
{
    CurrentDevice const current(mDevice);
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
    CurrentDevice const current(mDevice);
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
    CurrentDevice const current(mDevice);
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
