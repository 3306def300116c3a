// A libnvinfer for the tests of tensorrt.cpp, on the strict driver (tests/stand_ins). Its engines are the
// blocks of small_blocks.h; a plan is text (planOf in small_model.h). Whatever a program calls that is not modelled here is
// an error (header_stubs.py).
//
// Rules, by NvInferRuntime.h unless said otherwise:
// - A registry belongs to one runtime, and a plan whose plugin is not in it is refused (tried on tensorrt-rtx 1.7.1).
// - Engines go before their runtime (IRuntime::deserializeCudaEngine), contexts before their engine.
// - A context takes its profile before shapes (setOptimizationProfileAsync); a shape lies within it (setInputShape).
// - Addresses are at multiples of 256 (setTensorAddress) and all set. Scratch is large enough for the profile
//   (setDeviceMemoryV2), and whatever it held is lost.
// - Work runs when the stream reaches it (enqueueV3). A first run with a shape may do what cannot be captured (Developer
//   Guide, "CUDA Graphs").
// - All of it works in the context that is current in the thread (CUDA Driver API, "Context Management").
#include "late_stubs.h"
#include "small_blocks.h"

#include <NvInferRuntime.h>
#include <algorithm>
#include <cuda.h>
#include <dlfcn.h>
#include <fstream>
#include <memory>
#include <set>
#include <sstream>

using glm_trt::test::Call;
using glm_trt::test::SmallBlock;
using glm_trt::test::smallBlocks;

namespace
{

template <typename Function>
Function* driver(char const* name)
{
    static void* const library = dlopen("libcuda.so.1", RTLD_NOW);
    return reinterpret_cast<Function*>(dlsym(library, name));
}

void violated(std::string const& what)
{
    driver<void(char const*, char const*)>("standInViolated")("tensorrt", what.c_str());
}

void expectCurrent(char const* call)
{
    size_t free = 0;
    size_t total = 0;
    if (driver<CUresult(size_t*, size_t*)>("cuMemGetInfo_v2")(&free, &total) != CUDA_SUCCESS)
    {
        violated(std::string(call) + " without a current context");
    }
}

bool holds(void const* address, size_t bytes)
{
    return driver<int(CUdeviceptr, size_t)>("standInHolds")(reinterpret_cast<CUdeviceptr>(address), bytes) != 0;
}

struct Profile
{
    int64_t least;
    int64_t most;
    int64_t scratch;
};

//! A plan, read.
struct Plan
{
    std::string kind;
    std::string plugin; // "-": none
    std::vector<Profile> profiles;
    std::vector<glm_trt::IoTensor> io;

    explicit Plan(std::string const& text)
    {
        std::istringstream lines(text);
        lines >> kind >> plugin;
        for (std::string line; std::getline(lines, line);)
        {
            std::istringstream words(line);
            std::string word;
            words >> word;
            if (word == "profile")
            {
                Profile profile{};
                words >> profile.least >> profile.most >> profile.scratch;
                profiles.push_back(profile);
            }
            else if (word == "io")
            {
                glm_trt::IoTensor tensor{};
                words >> tensor.name >> word >> tensor.elementBytes;
                tensor.isInput = word == "in";
                for (int64_t size = 0; words >> size;)
                {
                    tensor.shape.push_back(size);
                }
                io.push_back(tensor);
            }
        }
    }
    glm_trt::IoTensor const* find(char const* name) const
    {
        for (auto const& tensor : io)
        {
            if (tensor.name == name)
            {
                return &tensor;
            }
        }
        return nullptr;
    }
};

//! A run, as the stream has it.
struct Run
{
    Call call;
    void (*body)(Call const&);
    std::vector<std::pair<std::byte*, size_t>> memory;
    std::byte* scratch;
    size_t scratchBytes;

    static void work(void* data)
    {
        auto const& run = *static_cast<Run*>(data);
        bool good = run.scratchBytes == 0 || holds(run.scratch, run.scratchBytes);
        for (auto const& [address, bytes] : run.memory)
        {
            good = holds(address, bytes) && good;
        }
        if (!good)
        {
            return;
        }
        std::fill_n(run.scratch, run.scratchBytes, std::byte{0xA5});
        try
        {
            run.body(run.call);
        }
        catch (std::exception const& error)
        {
            violated(error.what());
        }
    }
    static void destroy(void* data)
    {
        delete static_cast<Run*>(data);
    }
};

class Context : public nvinfer1::IExecutionContext, public StubVExecutionContext
{
public:
    Context(Plan const& plan, int& live, nvinfer1::ILogger& logger)
        : mPlan(plan)
        , mLive(live)
        , mLogger(logger)
    {
        mImpl = this;
        ++mLive;
    }
    ~Context() override
    {
        expectCurrent("~IExecutionContext");
        --mLive;
    }
    bool setOptimizationProfileAsync(int32_t profile, cudaStream_t) noexcept override
    {
        expectCurrent("setOptimizationProfileAsync");
        mProfile = profile;
        mShapes.clear();
        mWarm.clear();
        return profile >= 0 && profile < static_cast<int32_t>(mPlan.profiles.size());
    }
    bool setInputShape(char const* name, nvinfer1::Dims const& dims) noexcept override
    {
        auto const* tensor = mPlan.find(name);
        if (tensor == nullptr || !tensor->isInput || dims.nbDims != static_cast<int32_t>(tensor->shape.size()))
        {
            return refuse(std::string(name) + ": no such input, or of another rank");
        }
        Profile const& profile = mPlan.profiles[static_cast<size_t>(mProfile)];
        for (size_t i = 0; i < tensor->shape.size(); ++i)
        {
            int64_t const size = tensor->shape[i];
            if (size < 0 ? dims.d[i] < profile.least || dims.d[i] > profile.most : dims.d[i] != size)
            {
                return refuse(std::string(name) + ": a shape outside of the profile");
            }
            if (size < 0)
            {
                mShapes[name] = dims.d[i];
            }
        }
        return true;
    }
    bool setTensorAddress(char const* name, void* address) noexcept override
    {
        if (mPlan.find(name) == nullptr || reinterpret_cast<uintptr_t>(address) % 256 != 0)
        {
            return refuse(std::string(name) + ": no such tensor, or an address that is no multiple of 256");
        }
        mCall.addresses[name] = static_cast<std::byte*>(address);
        return true;
    }
    void setDeviceMemoryV2(void* memory, int64_t size) noexcept override
    {
        mScratch = static_cast<std::byte*>(memory);
        mScratchBytes = size;
    }
    bool enqueueV3(cudaStream_t stream) noexcept override
    {
        expectCurrent("enqueueV3");
        int64_t const scratch = mPlan.profiles[static_cast<size_t>(mProfile)].scratch;
        if (mScratchBytes < scratch)
        {
            return refuse("scratch of " + std::to_string(mScratchBytes) + " bytes, not of " + std::to_string(scratch));
        }
        auto run = std::make_unique<Run>();
        mCall.tokens = 1;
        for (auto const& tensor : mPlan.io)
        {
            bool const isOpen = std::find(tensor.shape.begin(), tensor.shape.end(), -1) != tensor.shape.end();
            if (tensor.isInput && isOpen && mShapes.count(tensor.name) == 0)
            {
                return refuse(tensor.name + ": no shape");
            }
            if (mCall.addresses.count(tensor.name) == 0)
            {
                return refuse(tensor.name + ": no address");
            }
            if (tensor.isInput && isOpen)
            {
                mCall.tokens = mShapes.at(tensor.name);
            }
        }
        for (auto const& tensor : mPlan.io)
        {
            size_t bytes = tensor.elementBytes;
            for (int64_t const size : tensor.shape)
            {
                bytes *= static_cast<size_t>(size < 0 ? mCall.tokens : size);
            }
            run->memory.emplace_back(mCall.addresses.at(tensor.name), bytes);
        }
        auto* const at = reinterpret_cast<CUstream>(stream);
        if (mWarm.insert(mCall.tokens).second && isCapturing(at))
        {
            CUdeviceptr memory = 0;
            driver<CUresult(CUdeviceptr*, size_t)>("cuMemAlloc_v2")(&memory, 1);
            return refuse("a first run with a shape cannot be captured");
        }
        for (auto const& block : smallBlocks())
        {
            run->body = block.kind == mPlan.kind ? block.body : run->body;
        }
        run->call = mCall;
        run->scratch = mScratch;
        run->scratchBytes = static_cast<size_t>(scratch);
        using Queue = int(CUstream, char const*, void (*)(void*), void (*)(void*), void*);
        return driver<Queue>("standInQueue")(at, mPlan.kind.c_str(), Run::work, Run::destroy, run.release()) == 0;
    }

private:
    static bool isCapturing(CUstream stream)
    {
        CUstreamCaptureStatus status{};
        driver<CUresult(CUstream, CUstreamCaptureStatus*)>("cuStreamIsCapturing")(stream, &status);
        return status == CU_STREAM_CAPTURE_STATUS_ACTIVE;
    }
    bool refuse(std::string const& why)
    {
        mLogger.log(nvinfer1::ILogger::Severity::kERROR, why.c_str());
        return false;
    }

    Plan const& mPlan;
    int& mLive;
    nvinfer1::ILogger& mLogger;
    int32_t mProfile{0};
    std::map<std::string, int64_t> mShapes;
    std::set<int64_t> mWarm; // tokens of runs
    Call mCall{};
    std::byte* mScratch{nullptr};
    int64_t mScratchBytes{0};
};

class Engine : public nvinfer1::ICudaEngine, public StubVCudaEngine
{
public:
    Engine(Plan plan, int& live, nvinfer1::ILogger& logger)
        : mPlan(std::move(plan))
        , mLive(live)
        , mLogger(logger)
    {
        nvinfer1::ICudaEngine::mImpl = this;
        ++mLive;
    }
    ~Engine() override
    {
        expectCurrent("~ICudaEngine");
        --mLive;
        if (mContexts != 0)
        {
            violated("an engine was destroyed before its contexts");
        }
    }
    int32_t getNbIOTensors() const noexcept override
    {
        return static_cast<int32_t>(mPlan.io.size());
    }
    char const* getIOTensorName(int32_t index) const noexcept override
    {
        return mPlan.io[static_cast<size_t>(index)].name.c_str();
    }
    nvinfer1::Dims getTensorShape(char const* name) const noexcept override
    {
        nvinfer1::Dims dims{};
        auto const& shape = mPlan.find(name)->shape;
        dims.nbDims = static_cast<int32_t>(shape.size());
        std::copy(shape.begin(), shape.end(), dims.d);
        return dims;
    }
    nvinfer1::DataType getTensorDataType(char const* name) const noexcept override
    {
        return mPlan.find(name)->elementBytes == 8 ? nvinfer1::DataType::kINT64 : nvinfer1::DataType::kFLOAT;
    }
    nvinfer1::TensorIOMode getTensorIOMode(char const* name) const noexcept override
    {
        return mPlan.find(name)->isInput ? nvinfer1::TensorIOMode::kINPUT : nvinfer1::TensorIOMode::kOUTPUT;
    }
    int32_t getNbOptimizationProfiles() const noexcept override
    {
        return static_cast<int32_t>(mPlan.profiles.size());
    }
    nvinfer1::Dims getProfileShape(
        char const* name, int32_t profile, nvinfer1::OptProfileSelector which) const noexcept override
    {
        nvinfer1::Dims dims = getTensorShape(name);
        Profile const& of = mPlan.profiles[static_cast<size_t>(profile)];
        std::replace(dims.d, dims.d + dims.nbDims, int64_t{-1},
            which == nvinfer1::OptProfileSelector::kMIN ? of.least : of.most);
        return dims;
    }
    int64_t getDeviceMemorySizeForProfileV2(int32_t profile) const noexcept override
    {
        return mPlan.profiles[static_cast<size_t>(profile)].scratch;
    }
    nvinfer1::IExecutionContext* createExecutionContext(
        nvinfer1::ExecutionContextAllocationStrategy strategy) noexcept override
    {
        expectCurrent("createExecutionContext");
        if (strategy != nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED)
        {
            violated("a context with scratch of its own");
        }
        return new Context(mPlan, mContexts, mLogger);
    }

private:
    Plan mPlan;
    int& mLive;
    int mContexts{0};
    nvinfer1::ILogger& mLogger;
};

class Registry : public StubIPluginRegistry
{
public:
    //! In place of a library: a file that names its plugins.
    nvinfer1::IPluginRegistry::PluginLibraryHandle loadLibrary(char const* path) noexcept override
    {
        std::ifstream file(path);
        for (std::string name; file >> name;)
        {
            names.insert(name);
        }
        return names.empty() ? nullptr : this;
    }

    std::set<std::string> names;
};

class Runtime : public nvinfer1::IRuntime, public StubVRuntime
{
public:
    explicit Runtime(nvinfer1::ILogger& logger)
        : mLogger(logger)
    {
        mImpl = this;
    }
    ~Runtime() override
    {
        if (mEngines != 0)
        {
            violated("a runtime was destroyed before its engines");
        }
    }
    nvinfer1::ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override
    {
        expectCurrent("deserializeCudaEngine");
        Plan plan(std::string(static_cast<char const*>(blob), size));
        if (plan.plugin != "-" && mRegistry.names.count(plan.plugin) == 0)
        {
            mLogger.log(nvinfer1::ILogger::Severity::kERROR,
                "Plugin not found, are the plugin name, version, and namespace correct?");
            return nullptr;
        }
        return new Engine(std::move(plan), mEngines, mLogger);
    }
    nvinfer1::IPluginRegistry& getPluginRegistry() noexcept override
    {
        return mRegistry;
    }

private:
    nvinfer1::ILogger& mLogger;
    Registry mRegistry;
    int mEngines{0};
};

} // namespace

void unexpected(char const* function)
{
    violated(std::string(function) + " is not modelled");
}

extern "C"
{

int32_t getInferLibVersion()
{
    return NV_TENSORRT_MAJOR * 10000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH;
}

void* createInferRuntime_INTERNAL(void* logger, int32_t version)
{
    // A class of another major version has another layout.
    if (version / 10000 != NV_TENSORRT_MAJOR && version / 1000 != NV_TENSORRT_MAJOR)
    {
        violated("a program that was built with other headers");
    }
    return static_cast<nvinfer1::IRuntime*>(new Runtime(*static_cast<nvinfer1::ILogger*>(logger)));
}

} // extern "C"
