// What a libnvinfer or libtensorrt_rtx exports; and a C ABI for the Python modules, which have no more than that.
#include "driver.h"
#include "engine.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

using namespace stand_in;

namespace
{

//! As the Python bindings' own: to stderr, from a severity on.
class StderrLogger final : public nvinfer1::ILogger
{
public:
    explicit StderrLogger(int32_t least)
        : mLeast(least)
    {
    }
    void log(Severity severity, char const* message) noexcept override
    {
        if (static_cast<int32_t>(severity) <= mLeast)
        {
            std::fprintf(stderr, "[TRT] [%c] %s\n", "FEWIV"[static_cast<int32_t>(severity)], message);
        }
    }

private:
    int32_t mLeast;
};

//! A registry of a builder.
struct Builder
{
    explicit Builder(nvinfer1::ILogger& logger)
        : registry(logger)
    {
    }
    Registry registry;
};

Shape shapeOf(nvinfer1::Dims const& dims)
{
    return dims.nbDims < 0 ? Shape() : Shape(dims.d, dims.d + dims.nbDims);
}

int32_t copyOut(std::string const& text, char* reply, size_t size)
{
    if (text.size() + 1 > size)
    {
        return 2;
    }
    std::memcpy(reply, text.c_str(), text.size() + 1);
    return 0;
}

} // namespace

void unexpected(char const* function)
{
    violated("not-modelled", function);
}

#pragma GCC visibility push(default)

extern "C"
{

int32_t getInferLibVersion()
{
    return NV_TENSORRT_MAJOR * 10000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH;
}

void* createInferRuntime_INTERNAL(void* logger, int32_t version)
{
    if (version / 10000 != NV_TENSORRT_MAJOR && version / 1000 != NV_TENSORRT_MAJOR)
    {
        violated("other-headers", "a program that was built with headers of version " + std::to_string(version));
    }
    return static_cast<nvinfer1::IRuntime*>(new Runtime(*static_cast<nvinfer1::ILogger*>(logger)));
}

void* standInLogger(int32_t least)
{
    return static_cast<nvinfer1::ILogger*>(new StderrLogger(least)); // lives as long as the process
}

nvinfer1::IRuntime* standInRuntime(nvinfer1::ILogger* logger)
{
    return static_cast<nvinfer1::IRuntime*>(createInferRuntime_INTERNAL(logger, NV_TENSORRT_VERSION));
}

Registry* standInRuntimeRegistry(nvinfer1::IRuntime* runtime)
{
    return static_cast<Registry*>(&runtime->getPluginRegistry());
}

void standInDeleteRuntime(nvinfer1::IRuntime* runtime)
{
    delete runtime;
}

Builder* standInBuilder(nvinfer1::ILogger* logger)
{
    return new Builder(*logger);
}

Registry* standInBuilderRegistry(Builder* builder)
{
    return &builder->registry;
}

void standInDeleteBuilder(Builder* builder)
{
    delete builder;
}

void* standInLoadLibrary(Registry* registry, char const* path)
{
    return registry->loadLibrary(path);
}

//! The names of its creators: lines.
int32_t standInCreators(Registry* registry, char* reply, size_t size)
{
    int32_t count = 0;
    auto* const* const creators = registry->getAllCreators(&count);
    std::string names;
    for (int32_t i = 0; i < count; ++i)
    {
        auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
        names += std::string(creator->getPluginName()) + "\t" + creator->getPluginVersion() + "\t"
            + creator->getPluginNamespace() + "\n";
    }
    return copyOut(names, reply, size);
}

//! 0 with the answer, or 1 with what is wrong.
int32_t standInBuildPlugin(Registry* registry, char const* request, char* reply, size_t size)
{
    try
    {
        return copyOut(buildPlugin(*registry, request), reply, size);
    }
    catch (std::exception const& error)
    {
        copyOut(error.what(), reply, size);
        return 1;
    }
}

nvinfer1::ICudaEngine* standInEngine(nvinfer1::IRuntime* runtime, void const* blob, size_t size)
{
    return runtime->deserializeCudaEngine(blob, size);
}

void standInDeleteEngine(nvinfer1::ICudaEngine* engine)
{
    delete engine;
}

int32_t standInTensors(nvinfer1::ICudaEngine* engine)
{
    return engine->getNbIOTensors();
}

char const* standInTensorName(nvinfer1::ICudaEngine* engine, int32_t index)
{
    return engine->getIOTensorName(index);
}

int32_t standInTensorMode(nvinfer1::ICudaEngine* engine, char const* name)
{
    return static_cast<int32_t>(engine->getTensorIOMode(name));
}

int32_t standInTensorType(nvinfer1::ICudaEngine* engine, char const* name)
{
    return static_cast<int32_t>(engine->getTensorDataType(name));
}

//! Its rank, with the sizes in `sizes`; of a profile's `which` where `profile` is not -1.
int32_t standInTensorShape(
    nvinfer1::ICudaEngine* engine, char const* name, int32_t profile, int32_t which, int64_t* sizes)
{
    auto const dims = profile < 0
        ? engine->getTensorShape(name)
        : engine->getProfileShape(name, profile, static_cast<nvinfer1::OptProfileSelector>(which));
    Shape const shape = shapeOf(dims);
    std::memcpy(sizes, shape.data(), shape.size() * sizeof(int64_t));
    return dims.nbDims;
}

int32_t standInProfiles(nvinfer1::ICudaEngine* engine)
{
    return engine->getNbOptimizationProfiles();
}

int64_t standInScratch(nvinfer1::ICudaEngine* engine, int32_t profile)
{
    return engine->getDeviceMemorySizeForProfileV2(profile);
}

nvinfer1::IExecutionContext* standInContext(nvinfer1::ICudaEngine* engine, int32_t strategy, int32_t isLazy)
{
    auto* const context
        = engine->createExecutionContext(static_cast<nvinfer1::ExecutionContextAllocationStrategy>(strategy));
    static_cast<Context*>(context)->isLazy = isLazy != 0;
    return context;
}

void standInDeleteContext(nvinfer1::IExecutionContext* context)
{
    delete context;
}

int32_t standInSetProfile(nvinfer1::IExecutionContext* context, int32_t profile, void* stream)
{
    return context->setOptimizationProfileAsync(profile, static_cast<cudaStream_t>(stream));
}

int32_t standInGetProfile(nvinfer1::IExecutionContext* context)
{
    return context->getOptimizationProfile();
}

int32_t standInSetShape(nvinfer1::IExecutionContext* context, char const* name, int32_t rank, int64_t const* sizes)
{
    nvinfer1::Dims dims{};
    dims.nbDims = rank;
    std::memcpy(dims.d, sizes, static_cast<size_t>(rank) * sizeof(int64_t));
    return context->setInputShape(name, dims);
}

int32_t standInGetShape(nvinfer1::IExecutionContext* context, char const* name, int64_t* sizes)
{
    auto const dims = context->getTensorShape(name);
    std::memcpy(sizes, dims.d, static_cast<size_t>(dims.nbDims > 0 ? dims.nbDims : 0) * sizeof(int64_t));
    return dims.nbDims;
}

int32_t standInSetAddress(nvinfer1::IExecutionContext* context, char const* name, void* address)
{
    return context->setTensorAddress(name, address);
}

void const* standInGetAddress(nvinfer1::IExecutionContext* context, char const* name)
{
    return context->getTensorAddress(name);
}

void standInSetScratch(nvinfer1::IExecutionContext* context, void* memory, int64_t size)
{
    context->setDeviceMemoryV2(memory, size);
}

int32_t standInEnqueue(nvinfer1::IExecutionContext* context, void* stream)
{
    return context->enqueueV3(static_cast<cudaStream_t>(stream));
}

} // extern "C"

#pragma GCC visibility pop
