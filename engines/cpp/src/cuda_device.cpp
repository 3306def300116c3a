// The first GPU through the CUDA driver, which is opened at run time: the library loads where there is none.
#include "cuda_driver.h"
#include "cuda_staging.h"
#include "device.h"

#include <optional>

namespace glm_trt
{
namespace
{

CUdeviceptr address(std::byte const* memory)
{
    return reinterpret_cast<CUdeviceptr>(memory);
}

//! Whether a result says that what was queued cannot be recorded, not that something is wrong with it.
bool saysCannotBeRecorded(CUresult result)
{
    return result >= CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED && result <= CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
}

//! Once for all devices; where it fails the next one tries again.
Driver const& opened(std::string const& what)
{
    static Driver const driver(what);
    return driver;
}

class CudaGraph : public RecordedWork
{
public:
    CudaGraph(Driver const& driver, CUstream stream, OwnedGraphExec graph)
        : mDriver(driver)
        , mStream(stream)
        , mGraph(std::move(graph))
    {
    }
    void launch() override
    {
        mDriver.check("cuGraphLaunch", mDriver.graphLaunch(mGraph.get(), mStream));
    }

private:
    Driver const& mDriver;
    CUstream mStream;
    OwnedGraphExec mGraph;
};

//! What lives in the context; made and destroyed while it is current.
struct Queue
{
    explicit Queue(Driver const& driver)
        : stream(create(driver))
        , staging(driver, stream.get())
    {
    }

    OwnedStream stream;
    Staging staging;

private:
    static OwnedStream create(Driver const& driver)
    {
        CUstream stream = nullptr;
        driver.check("cuStreamCreate", driver.streamCreate(&stream, CU_STREAM_NON_BLOCKING));
        return {driver, stream};
    }
};

class CudaDevice : public Device
{
public:
    explicit CudaDevice(std::string const& what)
        : mDriver(opened(what))
        , mContext(mDriver, what)
    {
        CurrentDevice const current(*this);
        mQueue.emplace(mDriver);
    }
    ~CudaDevice() override
    {
        whileCurrent(*this,
            [this]
            {
                mDriver.streamSynchronize(cudaStream()); // whatever it answers: nothing may use the pinned memory any more
                mQueue.reset();
            });
    }

    void enter() override
    {
        mContext.enter();
    }
    void leave() noexcept override
    {
        mContext.leave();
    }
    std::byte* allocate(size_t bytes) override
    {
        CUdeviceptr memory = 0;
        mDriver.check("cuMemAlloc", mDriver.memAlloc(&memory, bytes ? bytes : 1));
        return reinterpret_cast<std::byte*>(memory);
    }
    void release(std::byte* memory) noexcept override
    {
        whileCurrent(*this, [&] { mDriver.memFree(address(memory)); });
    }
    void upload(std::byte* to, void const* from, size_t bytes) override
    {
        mQueue->staging.upload(address(to), from, bytes);
    }
    void download(void* to, std::byte const* from, size_t bytes) override
    {
        mQueue->staging.download(to, address(from), bytes);
    }
    void copy(std::byte* to, std::byte const* from, size_t bytes) override
    {
        mDriver.check("cuMemcpyDtoDAsync", mDriver.memcpyDtoD(address(to), address(from), bytes, cudaStream()));
    }
    void clear(std::byte* to, size_t bytes) override
    {
        mDriver.check("cuMemsetD8Async", mDriver.memset(address(to), 0, bytes, cudaStream()));
    }
    void synchronize() override
    {
        mDriver.check("cuStreamSynchronize", mDriver.streamSynchronize(cudaStream()));
    }
    size_t freeBytes() override
    {
        size_t free = 0;
        size_t total = 0;
        mDriver.check("cuMemGetInfo", mDriver.memGetInfo(&free, &total));
        return free;
    }
    void* stream() override
    {
        return cudaStream();
    }
    std::string target() override
    {
        return "sm" + std::to_string(attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR))
            + std::to_string(attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR));
    }

    std::unique_ptr<RecordedWork> record(std::function<void()> const& work) override
    {
        mDriver.check("cuStreamBeginCapture",
            mDriver.streamBeginCapture(cudaStream(), CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        std::exception_ptr thrown;
        try
        {
            work();
        }
        catch (...)
        {
            thrown = std::current_exception(); // the capture must be ended all the same
        }
        CUgraph captured = nullptr;
        CUresult const result = mDriver.streamEndCapture(cudaStream(), &captured);
        OwnedGraph const graph(mDriver, captured);
        // Work that cannot be recorded makes the capture invalid, whatever error came of it on the way.
        if (saysCannotBeRecorded(result))
        {
            return nullptr;
        }
        if (thrown != nullptr)
        {
            std::rethrow_exception(thrown);
        }
        mDriver.check("cuStreamEndCapture", result);
        CUgraphExec executable = nullptr;
        mDriver.check("cuGraphInstantiate", mDriver.graphInstantiate(&executable, graph.get(), 0));
        return std::make_unique<CudaGraph>(mDriver, cudaStream(), OwnedGraphExec(mDriver, executable));
    }

private:
    CUstream cudaStream() const
    {
        return mQueue->stream.get();
    }
    int attribute(CUdevice_attribute name)
    {
        int value = 0;
        mDriver.check("cuDeviceGetAttribute", mDriver.deviceGetAttribute(&value, name, mContext.device()));
        return value;
    }

    Driver const& mDriver;
    PrimaryContext mContext;
    std::optional<Queue> mQueue;
};

} // namespace

std::unique_ptr<Device> openGpu(std::string const& what)
{
    return std::make_unique<CudaDevice>(what);
}

} // namespace glm_trt
