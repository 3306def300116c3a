#include "tensorrt.h"

#include "file.h"
#include "glm_trt/errors.h"

#include <NvInferRuntime.h>
#include <algorithm>
#include <cstdio>
#include <dlfcn.h>
#include <mutex>

namespace glm_trt
{
namespace
{

class Logger : public nvinfer1::ILogger
{
public:
    void log(Severity severity, char const* message) noexcept override
    {
        if (severity <= Severity::kWARNING)
        {
            std::fprintf(stderr, "TensorRT: %s\n", message);
        }
        if (severity <= Severity::kERROR)
        {
            try
            {
                std::lock_guard<std::mutex> const lock(mMutex);
                mLast = message;
            }
            catch (...)
            {
                // Without memory there is no message to keep.
            }
        }
    }
    std::string last()
    {
        std::lock_guard<std::mutex> const lock(mMutex);
        return mLast;
    }

private:
    std::mutex mMutex;
    std::string mLast;
};

#ifdef TRT_MAJOR_RTX
constexpr char kBuiltFor[] = "tensorrt-rtx";
#else
constexpr char kBuiltFor[] = "tensorrt";
#endif

//! The library, opened; never closed, as plugins and engines may outlive whoever opened it.
class Library
{
public:
    explicit Library(std::string const& backend)
    {
        // The name with the version of the headers: another one would not fit.
        std::string const name = backend == "tensorrt" ? "libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR)
                                                       : "libtensorrt_rtx.so.1";
        void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_GLOBAL);
        if (library == nullptr)
        {
            throw MissingCapabilityError("backend " + backend + ": " + name + " cannot be loaded: " + dlerror());
        }
        auto const version = reinterpret_cast<int32_t (*)()>(dlsym(library, "getInferLibVersion"));
        create = reinterpret_cast<void* (*)(void*, int32_t)>(dlsym(library, "createInferRuntime_INTERNAL"));
        if (version == nullptr || create == nullptr)
        {
            throw MissingCapabilityError("backend " + backend + ": " + name + " is not a TensorRT runtime");
        }
        // Classes of ours derive from TensorRT's, whose layout is that of a major version.
        if (int32_t const major = version() / 10000; major != NV_TENSORRT_MAJOR)
        {
            throw MissingCapabilityError("backend " + backend + ": " + name + " has major version "
                + std::to_string(major) + ", but this runtime was built with the headers of " + kBuiltFor + " "
                + std::to_string(NV_TENSORRT_MAJOR) + ": build it with TENSORRT_ROOT set to that library's SDK");
        }
    }

    void* (*create)(void*, int32_t);
};

} // namespace

//! The order matters: a runtime goes before its logger, and behind its engines, which hold this.
struct TensorRt
{
    explicit TensorRt(std::string const& backend)
        : library(backend)
        , runtime(static_cast<nvinfer1::IRuntime*>(library.create(&logger, NV_TENSORRT_VERSION)))
    {
        if (runtime == nullptr)
        {
            throw MissingCapabilityError("backend " + backend + ": no runtime: " + logger.last());
        }
    }

    Logger logger;
    Library library;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
};

namespace
{

//! Its scratch is the caller's. TensorRT-RTX compiles kernels for a shape in the background and runs others meanwhile,
//! which a recording would replay for ever: where one is made it is to compile first. Where the number of tokens changes
//! from pass to pass, waiting for each would cost more than it gives.
std::unique_ptr<nvinfer1::IExecutionContext> makeContext(
    nvinfer1::ICudaEngine& engine, [[maybe_unused]] bool isRecorded)
{
    using nvinfer1::ExecutionContextAllocationStrategy;
#ifdef TRT_MAJOR_RTX
    std::unique_ptr<nvinfer1::IRuntimeConfig> const config(engine.createRuntimeConfig());
    if (config == nullptr)
    {
        return nullptr;
    }
    config->setExecutionContextAllocationStrategy(ExecutionContextAllocationStrategy::kUSER_MANAGED);
    using nvinfer1::DynamicShapesKernelSpecializationStrategy;
    config->setDynamicShapesKernelSpecializationStrategy(isRecorded ? DynamicShapesKernelSpecializationStrategy::kEAGER
                                                                    : DynamicShapesKernelSpecializationStrategy::kLAZY);
    return std::unique_ptr<nvinfer1::IExecutionContext>(engine.createExecutionContext(config.get()));
#else
    return std::unique_ptr<nvinfer1::IExecutionContext>(
        engine.createExecutionContext(ExecutionContextAllocationStrategy::kUSER_MANAGED));
#endif
}

class TensorRtExecution : public Execution
{
public:
    TensorRtExecution(std::shared_ptr<TensorRt> tensorRt, std::unique_ptr<nvinfer1::IExecutionContext> context,
        Device& device, std::string kind)
        : mTensorRt(std::move(tensorRt))
        , mContext(std::move(context))
        , mDevice(device)
        , mKind(std::move(kind))
    {
    }
    void setAddress(std::string const& name, std::byte* address) override
    {
        expect(mContext->setTensorAddress(name.c_str(), address), "address of " + name);
    }
    void setShape(std::string const& name, std::vector<int64_t> const& shape) override
    {
        nvinfer1::Dims dims{};
        dims.nbDims = static_cast<int32_t>(shape.size());
        std::copy(shape.begin(), shape.end(), dims.d);
        expect(mContext->setInputShape(name.c_str(), dims), "shape of " + name);
    }
    void run() override
    {
        expect(mContext->enqueueV3(static_cast<cudaStream_t>(mDevice.stream())), "run");
    }

private:
    void expect(bool good, std::string const& what)
    {
        if (!good)
        {
            throw Error(mKind + ": TensorRT refused its " + what + ": " + mTensorRt->logger.last());
        }
    }

    std::shared_ptr<TensorRt> mTensorRt;
    std::unique_ptr<nvinfer1::IExecutionContext> mContext;
    Device& mDevice;
    std::string mKind;
};

class TensorRtEngine : public Engine
{
public:
    TensorRtEngine(
        std::shared_ptr<TensorRt> tensorRt, EngineEntry const& file, std::filesystem::path const& path, Device& device)
        : mTensorRt(std::move(tensorRt))
        , mDevice(device)
        , mKind(file.kind)
    {
        std::string const plan = FileReader(path).rest();
        mEngine.reset(mTensorRt->runtime->deserializeCudaEngine(plan.data(), plan.size()));
        if (mEngine == nullptr)
        {
            throw BundleError(path.string() + ": cannot be loaded (built with " + file.backend + " "
                + file.backendVersion + " for " + file.target + "): " + mTensorRt->logger.last());
        }
        for (int32_t i = 0; i < mEngine->getNbIOTensors(); ++i)
        {
            char const* name = mEngine->getIOTensorName(i);
            auto const dims = mEngine->getTensorShape(name);
            auto const type = mEngine->getTensorDataType(name);
            auto const mode = mEngine->getTensorIOMode(name);
            mIo.push_back({name, mode == nvinfer1::TensorIOMode::kINPUT, bytesOf(type),
                std::vector<int64_t>(dims.d, dims.d + std::max(dims.nbDims, 0))});
        }
        readProfiles(path);
    }

    std::vector<IoTensor> const& io() const override
    {
        return mIo;
    }
    size_t scratchBytes() const override
    {
        int64_t most = 0;
        for (int32_t profile = 0; profile < mEngine->getNbOptimizationProfiles(); ++profile)
        {
            most = std::max(most, mEngine->getDeviceMemorySizeForProfileV2(profile));
        }
        return static_cast<size_t>(most);
    }
    int64_t maxTokens() const override
    {
        return mMaxTokens;
    }
    std::unique_ptr<Execution> execution(int profile, std::byte* scratch) override
    {
        int32_t const index = mProfiles[profile];
        auto context = makeContext(*mEngine, profile == 0);
        auto* stream = static_cast<cudaStream_t>(mDevice.stream());
        if (context == nullptr || !context->setOptimizationProfileAsync(index, stream))
        {
            throw Error(mKind + ": no execution context: " + mTensorRt->logger.last());
        }
        context->setDeviceMemoryV2(scratch, mEngine->getDeviceMemorySizeForProfileV2(index));
        return std::make_unique<TensorRtExecution>(mTensorRt, std::move(context), mDevice, mKind);
    }

private:
    //! Which profile takes one token, and which the most: asked of the engine, whatever their order.
    void readProfiles(std::filesystem::path const& path)
    {
        auto const isOpen = [](IoTensor const& tensor)
        { return tensor.isInput && std::find(tensor.shape.begin(), tensor.shape.end(), -1) != tensor.shape.end(); };
        auto const open = std::find_if(mIo.begin(), mIo.end(), isOpen);
        if (open == mIo.end())
        {
            return; // of one token, in the only profile
        }
        auto const axis = std::find(open->shape.begin(), open->shape.end(), -1) - open->shape.begin();
        mProfiles[0] = -1;
        for (int32_t profile = 0; profile < mEngine->getNbOptimizationProfiles(); ++profile)
        {
            auto const size = [&](nvinfer1::OptProfileSelector which)
            { return mEngine->getProfileShape(open->name.c_str(), profile, which).d[axis]; };
            int64_t const least = size(nvinfer1::OptProfileSelector::kMIN);
            int64_t const most = size(nvinfer1::OptProfileSelector::kMAX);
            if (least <= 1 && (mProfiles[0] < 0 || most == 1))
            {
                mProfiles[0] = profile;
            }
            if (least <= 2 && most > mMaxTokens)
            {
                mProfiles[1] = profile;
                mMaxTokens = most;
            }
        }
        if (mProfiles[0] < 0)
        {
            throw BundleError(path.string() + ": no profile of it takes one token");
        }
    }

    static size_t bytesOf(nvinfer1::DataType type)
    {
        switch (type)
        {
        case nvinfer1::DataType::kINT64: return 8;
        case nvinfer1::DataType::kFLOAT:
        case nvinfer1::DataType::kINT32: return 4;
        case nvinfer1::DataType::kHALF:
        case nvinfer1::DataType::kBF16: return 2;
        default: return 1;
        }
    }

    std::shared_ptr<TensorRt> mTensorRt;
    Device& mDevice;
    std::string mKind;
    std::unique_ptr<nvinfer1::ICudaEngine> mEngine;
    std::vector<IoTensor> mIo;
    int64_t mMaxTokens{1};
    int32_t mProfiles[2]{0, 0}; // of one token, of several
};

} // namespace

std::string defaultTensorRt()
{
    return kBuiltFor;
}

std::shared_ptr<TensorRt> openTensorRt(std::string const& backend)
{
    return std::make_shared<TensorRt>(backend);
}

Engines loadTensorRtEngines(std::shared_ptr<TensorRt> const& tensorRt, Bundle const& bundle,
    std::string const& backend, std::string const& dtype, Device& device)
{
    std::string const target = device.target();
    std::map<std::string, EngineEntry const*> files;
    bool needsLibrary = false;
    for (auto const& file : bundle.manifest().engines)
    {
        if (file.backend == backend && file.target == target && nameOf(file.dtype) == dtype)
        {
            files[file.kind] = &file;
            needsLibrary = needsLibrary || file.pluginLibrary.has_value();
        }
    }
    for (auto const& block : bundle.blocks())
    {
        if (files.count(block.kind) == 0)
        {
            throw BundleError(bundle.directory().string() + ": no engine of " + block.kind + " in " + dtype + " for "
                + target + " (" + backend + "); build it: glm-trt build " + bundle.directory().string()
                + " --backend " + backend + " --target " + target);
        }
    }
    if (needsLibrary)
    {
        auto const path = bundle.directory() / bundle.manifest().library.value();
        if (tensorRt->runtime->getPluginRegistry().loadLibrary(path.c_str()) == nullptr)
        {
            throw BundleError(bundle.directory().string() + ": its plugin library cannot be loaded: "
                + tensorRt->logger.last());
        }
    }
    Engines engines;
    for (auto const& block : bundle.blocks())
    {
        if (engines.count(block.kind) == 0)
        {
            EngineEntry const& file = *files.at(block.kind);
            engines[block.kind]
                = std::make_shared<TensorRtEngine>(tensorRt, file, bundle.directory() / file.file, device);
        }
    }
    return engines;
}

} // namespace glm_trt
