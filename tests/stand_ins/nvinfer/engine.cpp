#include "engine.h"

#include "driver.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <stdexcept>

namespace stand_in
{

nvinfer1::Dims toDims(Shape const& shape)
{
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), dims.d);
    return dims;
}

Loaded::Loaded(Plan given, Registry& registry)
    : plan(std::move(given))
{
    for (auto const& node : plan.nodes)
    {
        plugins.emplace_back();
        if (node.plugin.empty())
        {
            continue;
        }
        auto* const creator = registry.find(node.plugin, node.version, node.space);
        std::vector<nvinfer1::PluginField> fields;
        for (auto const& field : node.fields)
        {
            fields.emplace_back(field.name.c_str(), field.data.data(), field.type, field.length);
        }
        nvinfer1::PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
        if (creator != nullptr)
        {
            plugins.back().reset(creator->createPlugin("layer", &collection, nvinfer1::TensorRTPhase::kRUNTIME));
        }
        if (plugins.back() == nullptr)
        {
            throw std::runtime_error("Could not deserialize the plugin " + node.plugin);
        }
    }
    static std::atomic<int> made{0};
    file = memfd_create("stand-in plan", MFD_CLOEXEC);
    for (size_t at = 0; at < plan.models.size();)
    {
        ssize_t const wrote = write(file, plan.models.data() + at, plan.models.size() - at);
        if (wrote <= 0)
        {
            throw std::runtime_error("the models of a plan cannot be kept in memory");
        }
        at += static_cast<size_t>(wrote);
    }
    // The number tells files apart that had the same descriptor.
    path = "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(file) + "?" + std::to_string(++made);
}

Loaded::~Loaded()
{
    close(file);
}

Engine::Engine(std::shared_ptr<Loaded> loaded, std::atomic<int>& live, nvinfer1::ILogger& logger)
    : mLoaded(std::move(loaded))
    , mLive(live)
    , mLogger(logger)
{
    nvinfer1::ICudaEngine::mImpl = this;
    ++mLive;
}

Engine::~Engine()
{
    expectCurrent("~ICudaEngine");
    --mLive;
    if (mContexts != 0)
    {
        violated("destroyed-in-order", "an engine was destroyed before its contexts");
    }
}

int32_t Engine::getNbIOTensors() const noexcept
{
    return static_cast<int32_t>(mLoaded->plan.io.size());
}

char const* Engine::getIOTensorName(int32_t index) const noexcept
{
    bool const isOne = index >= 0 && index < getNbIOTensors();
    return isOne ? mLoaded->plan.io[static_cast<size_t>(index)].name.c_str() : nullptr;
}

Tensor const* Engine::find(char const* name) const
{
    Tensor const* const found = mLoaded->plan.find(name);
    if (found == nullptr)
    {
        mLogger.log(nvinfer1::ILogger::Severity::kERROR, (std::string("no tensor ") + name).c_str());
    }
    return found;
}

nvinfer1::Dims Engine::getTensorShape(char const* name) const noexcept
{
    Tensor const* const tensor = find(name);
    return tensor == nullptr ? nvinfer1::Dims{-1, {}} : toDims(tensor->shape);
}

nvinfer1::DataType Engine::getTensorDataType(char const* name) const noexcept
{
    Tensor const* const tensor = find(name);
    return tensor == nullptr ? nvinfer1::DataType::kFLOAT : tensor->type;
}

nvinfer1::TensorIOMode Engine::getTensorIOMode(char const* name) const noexcept
{
    using nvinfer1::TensorIOMode;
    Tensor const* const tensor = find(name);
    return tensor == nullptr ? TensorIOMode::kNONE : tensor->isInput ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
}

int32_t Engine::getNbOptimizationProfiles() const noexcept
{
    return static_cast<int32_t>(mLoaded->plan.profiles.size());
}

nvinfer1::Dims Engine::getProfileShape(
    char const* name, int32_t profile, nvinfer1::OptProfileSelector which) const noexcept
{
    Tensor const* const tensor = find(name);
    if (tensor == nullptr || !tensor->isInput || profile < 0 || profile >= getNbOptimizationProfiles())
    {
        return nvinfer1::Dims{-1, {}};
    }
    auto const& shapes = mLoaded->plan.profiles[static_cast<size_t>(profile)].shapes;
    auto const found = shapes.find(name);
    return toDims(found == shapes.end() ? tensor->shape : found->second[static_cast<size_t>(which)]);
}

int64_t Engine::getDeviceMemorySizeForProfileV2(int32_t profile) const noexcept
{
    bool const isOne = profile >= 0 && profile < getNbOptimizationProfiles();
    return isOne ? mLoaded->plan.profiles[static_cast<size_t>(profile)].scratch : 0;
}

nvinfer1::IExecutionContext* Engine::createExecutionContext(
    nvinfer1::ExecutionContextAllocationStrategy strategy) noexcept
{
    expectCurrent("createExecutionContext");
    if (strategy != nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED)
    {
        violated("not-modelled", "a context with scratch of its own");
    }
    return new Context(mLoaded, mContexts, mLogger);
}

Runtime::Runtime(nvinfer1::ILogger& logger)
    : mLogger(logger)
    , mRegistry(logger)
{
    nvinfer1::IRuntime::mImpl = this;
}

Runtime::~Runtime()
{
    if (mEngines != 0)
    {
        violated("destroyed-in-order", "a runtime was destroyed before its engines");
    }
}

nvinfer1::ICudaEngine* Runtime::deserializeCudaEngine(void const* blob, std::size_t size) noexcept
{
    expectCurrent("deserializeCudaEngine");
    try
    {
        Plan plan(static_cast<char const*>(blob), size);
        if (plan.flavour != STAND_IN_FLAVOUR || plan.version != STAND_IN_VERSION)
        {
            throw std::runtime_error("The engine plan file is not compatible with this version of TensorRT, expecting "
                                     "library version " STAND_IN_FLAVOUR " " STAND_IN_VERSION " got "
                + plan.flavour + " " + plan.version);
        }
        return new Engine(std::make_shared<Loaded>(std::move(plan), mRegistry), mEngines, mLogger);
    }
    catch (std::exception const& error)
    {
        mLogger.log(nvinfer1::ILogger::Severity::kERROR, error.what());
        return nullptr;
    }
}

nvinfer1::IPluginRegistry& Runtime::getPluginRegistry() noexcept
{
    return mRegistry;
}

} // namespace stand_in
