// Runtimes, engines and contexts of the stand-in. Its rules are in README.md, each with its source.
#pragma once

#include "plan.h"
#include "registry.h"

#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace stand_in
{

//! What contexts of an engine share: the plan, the plugins of its nodes, its models as a file that the executor reads.
struct Loaded
{
    //! Throws std::runtime_error where a plugin is not in the registry.
    Loaded(Plan given, Registry& registry);
    ~Loaded();

    Plan plan;
    std::vector<std::unique_ptr<nvinfer1::IPluginV3>> plugins; // of nodes; nullptr for segments
    std::string path;                                          // of the models
    int file{-1};
};

class Context : public nvinfer1::IExecutionContext, public StubVExecutionContext
{
public:
    Context(std::shared_ptr<Loaded> loaded, std::atomic<int>& live, nvinfer1::ILogger& logger);
    ~Context() override;

    bool setOptimizationProfileAsync(int32_t profile, cudaStream_t stream) noexcept override;
    int32_t getOptimizationProfile() const noexcept override;
    bool setInputShape(char const* name, nvinfer1::Dims const& dims) noexcept override;
    nvinfer1::Dims getTensorShape(char const* name) const noexcept override;
    bool setTensorAddress(char const* name, void* address) noexcept override;
    void const* getTensorAddress(char const* name) const noexcept override;
    void setDeviceMemoryV2(void* memory, int64_t size) noexcept override;
    bool enqueueV3(cudaStream_t stream) noexcept override;

    //! On TensorRT-RTX: kernels are specialised in the background, unless a runtime config says otherwise.
    bool isLazy{false};

private:
    struct Place
    {
        nvinfer1::DataType type;
        Shape shape;
        std::byte* address;
    };

    Profile const& profile() const;
    bool refuse(std::string const& why) const;
    std::string whyNot() const;
    std::string whyNotAliased(std::map<std::string, Place> const& places) const;
    Shape shapeOf(Value const& value) const;
    std::map<std::string, Place> places() const;
    bool enqueueAll(void* stream);
    bool queueScratch(void* stream, std::map<std::string, Place> const& places) const;
    bool queueSegment(void* stream, Node const& node, std::map<std::string, Place> const& places) const;
    bool enqueuePlugin(void* stream, size_t index, std::map<std::string, Place> const& places);

    std::shared_ptr<Loaded> mLoaded;
    std::atomic<int>& mLive;
    nvinfer1::ILogger& mLogger;
    std::shared_ptr<std::atomic<bool>> mIsThere;
    std::vector<std::unique_ptr<nvinfer1::IPluginV3>> mPlugins;
    std::vector<std::string> mShapesOfPlugins; // that each was told of
    int32_t mProfile{0};
    std::map<std::string, Shape> mShapes; // of open inputs
    std::map<std::string, std::byte*> mAddresses;
    std::set<std::string> mWarm; // profiles with shapes that ran
    std::byte* mScratch{nullptr};
    int64_t mScratchBytes{0};
};

class Engine : public nvinfer1::ICudaEngine, public StubVCudaEngine
{
public:
    Engine(std::shared_ptr<Loaded> loaded, std::atomic<int>& live, nvinfer1::ILogger& logger);
    ~Engine() override;

    int32_t getNbIOTensors() const noexcept override;
    char const* getIOTensorName(int32_t index) const noexcept override;
    nvinfer1::Dims getTensorShape(char const* name) const noexcept override;
    nvinfer1::DataType getTensorDataType(char const* name) const noexcept override;
    nvinfer1::TensorIOMode getTensorIOMode(char const* name) const noexcept override;
    int32_t getNbOptimizationProfiles() const noexcept override;
    nvinfer1::Dims getProfileShape(
        char const* name, int32_t profile, nvinfer1::OptProfileSelector which) const noexcept override;
    int64_t getDeviceMemorySizeForProfileV2(int32_t profile) const noexcept override;
    nvinfer1::IExecutionContext* createExecutionContext(
        nvinfer1::ExecutionContextAllocationStrategy strategy) noexcept override;

private:
    Tensor const* find(char const* name) const;

    std::shared_ptr<Loaded> mLoaded;
    std::atomic<int>& mLive;
    std::atomic<int> mContexts{0};
    nvinfer1::ILogger& mLogger;
};

class Runtime : public nvinfer1::IRuntime, public StubVRuntime
{
public:
    explicit Runtime(nvinfer1::ILogger& logger);
    ~Runtime() override;

    nvinfer1::ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override;
    nvinfer1::IPluginRegistry& getPluginRegistry() noexcept override;

private:
    nvinfer1::ILogger& mLogger;
    Registry mRegistry;
    std::atomic<int> mEngines{0};
};

nvinfer1::Dims toDims(Shape const& shape);

} // namespace stand_in
