#include "driver.h"
#include "engine.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace stand_in
{
namespace
{

bool isOpen(Tensor const& tensor)
{
    return tensor.isInput && std::find(tensor.shape.begin(), tensor.shape.end(), -1) != tensor.shape.end();
}

//! Work of a run, as the stream has it: an order for the executor, or scratch that loses what it held.
struct Work
{
    std::shared_ptr<Loaded> loaded; // the models' file stays
    std::shared_ptr<std::atomic<bool>> isThere;
    std::vector<std::pair<std::byte*, size_t>> memory;
    std::string request; // empty: fill memory

    static void run(void* data)
    {
        static_cast<Work*>(data)->run();
    }
    static void destroy(void* data)
    {
        delete static_cast<Work*>(data);
    }

private:
    void run() const
    {
        if (!*isThere)
        {
            violated("destroyed-in-order", "a context was destroyed before the stream reached its run");
            return;
        }
        for (auto const& [address, bytes] : memory)
        {
            if (!holds(address, bytes))
            {
                return;
            }
        }
        if (!request.empty())
        {
            execute(request);
            return;
        }
        for (auto const& [address, bytes] : memory)
        {
            std::memset(address, 0xFF, bytes);
        }
    }
};

} // namespace

Context::Context(std::shared_ptr<Loaded> loaded, std::atomic<int>& live, nvinfer1::ILogger& logger)
    : mLoaded(std::move(loaded))
    , mLive(live)
    , mLogger(logger)
    , mIsThere(std::make_shared<std::atomic<bool>>(true))
    , mShapesOfPlugins(mLoaded->plan.nodes.size())
{
    nvinfer1::IExecutionContext::mImpl = this;
    ++mLive;
    for (auto const& plugin : mLoaded->plugins)
    {
        mPlugins.emplace_back();
        if (plugin != nullptr)
        {
            auto* const runtime = static_cast<nvinfer1::IPluginV3OneRuntime*>(
                plugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
            mPlugins.back().reset(runtime->attachToContext(nullptr));
        }
    }
}

Context::~Context()
{
    expectCurrent("~IExecutionContext");
    *mIsThere = false;
    --mLive;
}

Profile const& Context::profile() const
{
    return mLoaded->plan.profiles[static_cast<size_t>(mProfile)];
}

bool Context::refuse(std::string const& why) const
{
    mLogger.log(nvinfer1::ILogger::Severity::kERROR, why.c_str());
    return false;
}

bool Context::setOptimizationProfileAsync(int32_t profile, cudaStream_t) noexcept
{
    expectCurrent("setOptimizationProfileAsync");
    if (profile < 0 || profile >= static_cast<int32_t>(mLoaded->plan.profiles.size()))
    {
        return refuse("no such profile");
    }
    mProfile = profile;
    mShapes.clear(); // "input shapes ... must be set anew"
    return true;
}

int32_t Context::getOptimizationProfile() const noexcept
{
    return mProfile;
}

bool Context::setInputShape(char const* name, nvinfer1::Dims const& dims) noexcept
{
    Tensor const* const tensor = mLoaded->plan.find(name);
    if (tensor == nullptr || !tensor->isInput || dims.nbDims != static_cast<int32_t>(tensor->shape.size()))
    {
        return refuse(std::string(name) + ": no such input, or of another rank");
    }
    Shape const shape(dims.d, dims.d + dims.nbDims);
    auto const range = profile().shapes.find(name);
    for (size_t i = 0; i < shape.size(); ++i)
    {
        int64_t const least = range == profile().shapes.end() ? tensor->shape[i] : range->second[0][i];
        int64_t const most = range == profile().shapes.end() ? tensor->shape[i] : range->second[2][i];
        if (shape[i] < least || shape[i] > most)
        {
            return refuse(std::string(name) + ": set dimension " + std::to_string(shape[i])
                + " at axis " + std::to_string(i) + " does not satisfy any optimization profiles");
        }
    }
    mShapes[name] = shape;
    return true;
}

nvinfer1::Dims Context::getTensorShape(char const* name) const noexcept
{
    Tensor const* const tensor = mLoaded->plan.find(name);
    if (tensor == nullptr)
    {
        return nvinfer1::Dims{-1, {}};
    }
    auto const set = mShapes.find(name);
    if (set != mShapes.end())
    {
        return toDims(set->second);
    }
    auto const value = profile().values.find(name);
    bool const isKnown = !tensor->isInput && whyNot().empty();
    return toDims(isKnown && value != profile().values.end() ? shapeOf(value->second) : tensor->shape);
}

bool Context::setTensorAddress(char const* name, void* address) noexcept
{
    if (mLoaded->plan.find(name) == nullptr || reinterpret_cast<uintptr_t>(address) % 256 != 0)
    {
        return refuse(std::string(name) + ": no such tensor, or an address that is no multiple of 256");
    }
    mAddresses[name] = static_cast<std::byte*>(address);
    return true;
}

void const* Context::getTensorAddress(char const* name) const noexcept
{
    auto const found = mAddresses.find(name);
    return found == mAddresses.end() ? nullptr : found->second;
}

void Context::setDeviceMemoryV2(void* memory, int64_t size) noexcept
{
    if (size < profile().scratch || reinterpret_cast<uintptr_t>(memory) % 256 != 0)
    {
        violated("scratch", "scratch of " + std::to_string(size) + " bytes, not of " + std::to_string(profile().scratch)
            + ", or at no multiple of 256");
    }
    mScratch = static_cast<std::byte*>(memory);
    mScratchBytes = size;
}

//! Why there can be no run now; empty where there can.
std::string Context::whyNot() const
{
    if (mScratchBytes < profile().scratch)
    {
        return "scratch of " + std::to_string(mScratchBytes) + " bytes, not of " + std::to_string(profile().scratch);
    }
    for (auto const& tensor : mLoaded->plan.io)
    {
        if (isOpen(tensor) && mShapes.count(tensor.name) == 0)
        {
            return tensor.name + ": no shape";
        }
    }
    return {};
}

//! For sizes that follow one open size, linearly.
Shape Context::shapeOf(Value const& value) const
{
    int64_t span = 0;
    int64_t part = 0;
    for (auto const& [name, range] : profile().shapes)
    {
        for (size_t i = 0; i < range[0].size(); ++i)
        {
            if (range[2][i] != range[0][i])
            {
                span = range[2][i] - range[0][i];
                part = mShapes.at(name)[i] - range[0][i];
            }
        }
    }
    Shape shape = value.least;
    for (size_t i = 0; i < shape.size() && span != 0; ++i)
    {
        shape[i] += (value.most[i] - value.least[i]) * part / span;
    }
    return shape;
}

std::map<std::string, Context::Place> Context::places() const
{
    std::map<std::string, Place> found;
    for (auto const& [name, value] : profile().values)
    {
        found[name] = {value.type, shapeOf(value), mScratch + value.offset};
    }
    for (auto const& tensor : mLoaded->plan.io)
    {
        if (mAddresses.count(tensor.name) == 0)
        {
            throw std::runtime_error(tensor.name + ": no address");
        }
        auto const set = mShapes.find(tensor.name);
        Shape const shape = !tensor.isInput ? found.at(tensor.name).shape
            : set != mShapes.end()          ? set->second
                                            : tensor.shape;
        found[tensor.name] = {tensor.type, shape, mAddresses.at(tensor.name)};
    }
    return found;
}

//! Outputs share memory with nothing but the input that they are declared to update.
std::string Context::whyNotAliased(std::map<std::string, Place> const& places) const
{
    auto const& io = mLoaded->plan.io;
    for (auto const& out : io)
    {
        if (out.isInput)
        {
            continue;
        }
        Place const& at = places.at(out.name);
        if (!out.aliasedTo.empty() && places.at(out.aliasedTo).address != at.address)
        {
            return out.name + " updates " + out.aliasedTo + " and has another address";
        }
        std::byte const* const end = at.address + bytesOf(at.type, at.shape);
        for (auto const& other : io)
        {
            Place const& there = places.at(other.name);
            bool const isApart
                = end <= there.address || there.address + bytesOf(there.type, there.shape) <= at.address;
            if (&other != &out && other.name != out.aliasedTo && other.aliasedTo != out.name && !isApart)
            {
                return out.name + " and " + other.name + " share memory";
            }
        }
    }
    return {};
}

bool Context::enqueueV3(cudaStream_t stream) noexcept
{
    expectCurrent("enqueueV3");
    try
    {
        if (std::string const why = whyNot(); !why.empty())
        {
            return refuse(why);
        }
        return enqueueAll(stream);
    }
    catch (std::exception const& error)
    {
        return refuse(error.what());
    }
}

bool Context::enqueueAll(void* stream)
{
    auto const all = places();
    if (std::string const why = whyNotAliased(all); !why.empty())
    {
        return refuse(why);
    }
    bool const isRecorded = isCapturing(stream);
    if (mWarm.insert(std::to_string(mProfile) + Json(mShapes).dump()).second && isRecorded)
    {
        spoilCapture();
        return refuse("a first run with a shape cannot be captured");
    }
    if (isRecorded && isLazy && !profile().shapes.empty())
    {
        violated("recorded-before-specialised", "kernels were recorded that are specialised later");
    }
    bool good = queueScratch(stream, all);
    for (size_t i = 0; i < mLoaded->plan.nodes.size() && good; ++i)
    {
        Node const& node = mLoaded->plan.nodes[i];
        good = node.plugin.empty() ? queueSegment(stream, node, all) : enqueuePlugin(stream, i, all);
    }
    return good;
}

bool Context::queueScratch(void* stream, std::map<std::string, Place> const& places) const
{
    auto scratch = std::make_unique<Work>(Work{mLoaded, mIsThere, {}, {}});
    if (profile().scratch > 0)
    {
        scratch->memory.emplace_back(mScratch, static_cast<size_t>(profile().scratch));
    }
    auto io = std::make_unique<Work>(Work{mLoaded, mIsThere, {}, {}});
    for (auto const& tensor : mLoaded->plan.io)
    {
        Place const& place = places.at(tensor.name);
        // What outputs held is lost; that of one that updates an input is the input.
        if (!tensor.isInput && tensor.aliasedTo.empty())
        {
            io->memory.emplace_back(place.address, bytesOf(place.type, place.shape));
        }
    }
    return queue(stream, "scratch", Work::run, Work::destroy, scratch.release())
        && queue(stream, "outputs", Work::run, Work::destroy, io.release());
}

bool Context::queueSegment(void* stream, Node const& node, std::map<std::string, Place> const& places) const
{
    auto work = std::make_unique<Work>(Work{mLoaded, mIsThere, {}, {}});
    auto const describe = [&](std::vector<std::string> const& names)
    {
        Json tensors = Json::array();
        for (auto const& name : names)
        {
            Place const& place = places.at(name);
            work->memory.emplace_back(place.address, bytesOf(place.type, place.shape));
            tensors.push_back({{"name", name}, {"dtype", static_cast<int32_t>(place.type)}, {"shape", place.shape},
                {"address", reinterpret_cast<uintptr_t>(place.address)}});
        }
        return tensors;
    };
    Json const request = {{"do", "graph"}, {"model", mLoaded->path}, {"offset", node.offset}, {"size", node.size},
        {"inputs", describe(node.inputs)}, {"outputs", describe(node.outputs)}};
    work->request = request.dump();
    return queue(stream, "segment", Work::run, Work::destroy, work.release());
}

bool Context::enqueuePlugin(void* stream, size_t index, std::map<std::string, Place> const& places)
{
    Node const& node = mLoaded->plan.nodes[index];
    auto* const plugin = static_cast<nvinfer1::IPluginV3OneRuntime*>(
        mPlugins[index]->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
    std::vector<nvinfer1::PluginTensorDesc> described;
    std::vector<void*> addresses;
    std::string shapes = std::to_string(mProfile);
    for (auto const* names : {&node.inputs, &node.outputs})
    {
        for (auto const& name : *names)
        {
            Place const& place = places.at(name);
            nvinfer1::PluginTensorDesc tensor{};
            tensor.dims = toDims(place.shape);
            tensor.type = place.type;
            tensor.format = nvinfer1::TensorFormat::kLINEAR;
            described.push_back(tensor);
            addresses.push_back(place.address);
            shapes += Json(place.shape).dump();
        }
    }
    auto const inputs = static_cast<int32_t>(node.inputs.size());
    if (mShapesOfPlugins[index] != shapes)
    {
        auto const outputs = static_cast<int32_t>(node.outputs.size());
        if (plugin->onShapeChange(described.data(), inputs, described.data() + inputs, outputs) != 0)
        {
            return refuse(node.plugin + ": onShapeChange failed");
        }
        mShapesOfPlugins[index] = shapes;
    }
    // At the end of the scratch, so that what is written behind it is behind the scratch too.
    int64_t const workspace = profile().workspaces[index];
    std::byte* const place = workspace == 0 ? nullptr : mScratch + profile().workspaceOffset;
    bool const good = plugin->enqueue(described.data(), described.data() + inputs, addresses.data(),
                          addresses.data() + inputs, place, static_cast<cudaStream_t>(stream))
        == 0;
    return good || refuse(node.plugin + ": enqueue failed");
}

} // namespace stand_in
