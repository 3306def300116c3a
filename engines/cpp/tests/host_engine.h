// A device and engines of the test's own, on host memory: what is done to them is checked as TensorRT would.
#pragma once

#include "device.h"
#include "engine.h"
#include "glm_trt/errors.h"
#include "small_blocks.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

namespace glm_trt::test
{

//! Host memory; new memory holds NaN, and no address comes twice. Work is done when something waits for it, in the order
//! of the queue, or kept while recording. Of a thread where the device is not current, calls are refused.
class HostDevice : public Device
{
public:
    ~HostDevice() override
    {
        for (auto const& [memory, bytes] : mAll)
        {
            std::free(memory);
        }
    }
    void enter() override
    {
        current().push_back(this);
    }
    void leave() noexcept override
    {
        current().pop_back();
    }
    std::byte* allocate(size_t bytes) override
    {
        expectCurrent();
        if (allocations == failAt)
        {
            throw MissingCapabilityError("the GPU has too little memory: the test says so");
        }
        ++allocations;
        auto* memory = static_cast<std::byte*>(std::malloc(bytes ? bytes : 1));
        std::memset(memory, 0xFF, bytes);
        mAll[memory] = bytes;
        mLive[memory] = bytes;
        return memory;
    }
    void release(std::byte* memory) noexcept override
    {
        drain();
        auto const found = mLive.find(memory);
        if (found == mLive.end())
        {
            std::abort(); // twice, or of no one
        }
        std::memset(memory, 0xFF, found->second);
        mLive.erase(found);
    }
    void upload(std::byte* to, void const* from, size_t bytes) override
    {
        expectCurrent();
        if (mKept != nullptr)
        {
            throw Error("an upload cannot be recorded");
        }
        expectLive(to);
        ++uploads;
        auto const* begin = static_cast<std::byte const*>(from);
        queue([to, data = std::vector<std::byte>(begin, begin + bytes)]
            { std::copy(data.begin(), data.end(), to); });
    }
    void download(void* to, std::byte const* from, size_t bytes) override
    {
        expectCurrent();
        expectLive(from);
        synchronize();
        std::memcpy(to, from, bytes);
    }
    void copy(std::byte* to, std::byte const* from, size_t bytes) override
    {
        queue(
            [=]
            {
                expectLive(to);
                expectLive(from);
                std::memcpy(to, from, bytes);
            });
    }
    void clear(std::byte* to, size_t bytes) override
    {
        queue(
            [=]
            {
                expectLive(to);
                std::memset(to, 0, bytes);
            });
    }
    void synchronize() override
    {
        expectCurrent();
        drain();
        if (std::string const error = std::exchange(mError, {}); !error.empty())
        {
            throw Error(error);
        }
    }
    size_t freeBytes() override
    {
        expectCurrent();
        return free;
    }
    void* stream() override
    {
        return nullptr;
    }
    std::string target() override
    {
        return "sm00";
    }
    std::unique_ptr<RecordedWork> record(std::function<void()> const& work) override
    {
        expectCurrent();
        if (!canRecord)
        {
            return nullptr;
        }
        auto recorded = std::make_unique<Recorded>(*this);
        mKept = &recorded->work;
        work();
        mKept = nullptr;
        return recorded;
    }
    //! As part of the queue, or of what is recorded.
    void queue(std::function<void()> work)
    {
        expectCurrent();
        (mKept != nullptr ? *mKept : mQueue).push_back(std::move(work));
    }
    //! Throws if the address is not in memory that was allocated and not released.
    void expectLive(std::byte const* address) const
    {
        auto const after = mLive.upper_bound(const_cast<std::byte*>(address));
        if (after == mLive.begin() || std::prev(after)->first + std::prev(after)->second <= address)
        {
            throw Error("work on memory that was released");
        }
    }
    size_t live() const
    {
        return mLive.size();
    }

    size_t free{1 << 30};
    size_t allocations{0};
    size_t failAt{~size_t{0}}; // the allocation that finds no memory
    size_t uploads{0};
    size_t launches{0};
    size_t recordings{0}; // that live
    bool canRecord{true};

private:
    struct Recorded : RecordedWork
    {
        explicit Recorded(HostDevice& of)
            : device(of)
        {
            ++device.recordings;
        }
        ~Recorded() override
        {
            --device.recordings;
        }
        void launch() override
        {
            ++device.launches;
            for (auto const& item : work)
            {
                device.queue(item);
            }
        }
        HostDevice& device;
        std::vector<std::function<void()>> work;
    };

    static std::vector<HostDevice const*>& current()
    {
        thread_local std::vector<HostDevice const*> devices;
        return devices;
    }
    void expectCurrent() const
    {
        if (current().empty() || current().back() != this)
        {
            throw Error("the device is not current in this thread");
        }
    }
    //! What fails is told to who waits next.
    void drain() noexcept
    {
        try
        {
            for (auto const& work : std::exchange(mQueue, {}))
            {
                work();
            }
        }
        catch (std::exception const& error)
        {
            mError = error.what();
        }
    }

    std::map<std::byte*, size_t> mAll;
    std::map<std::byte*, size_t> mLive;
    std::vector<std::function<void()>> mQueue;
    std::vector<std::function<void()>>* mKept{nullptr};
    std::string mError;
};

//! An engine that does `body`, in profiles of one token and of 2 ... maxTokens.
class HostEngine : public Engine
{
public:
    HostEngine(HostDevice& device, std::vector<IoTensor> io, int64_t maxTokens, std::function<void(Call const&)> body)
        : mDevice(device)
        , mIo(std::move(io))
        , mMaxTokens(maxTokens)
        , mBody(std::move(body))
    {
    }
    std::vector<IoTensor> const& io() const override
    {
        return mIo;
    }
    size_t scratchBytes() const override
    {
        return 100 * mIo.size(); // the largest is not the last
    }
    int64_t maxTokens() const override
    {
        return mMaxTokens;
    }
    std::unique_ptr<Execution> execution(int profile, std::byte*) override
    {
        return std::make_unique<HostExecution>(*this, profile);
    }

private:
    class HostExecution : public Execution
    {
    public:
        HostExecution(HostEngine& engine, int profile)
            : mEngine(engine)
            , mProfile(profile)
        {
        }
        void setAddress(std::string const& name, std::byte* address) override
        {
            mEngine.tensor(name);
            mCall.addresses[name] = address;
        }
        void setShape(std::string const& name, std::vector<int64_t> const& shape) override
        {
            auto const& known = mEngine.tensor(name).shape;
            for (size_t i = 0; i < known.size(); ++i)
            {
                if (known[i] == -1)
                {
                    mTokens[name] = shape.at(i);
                }
                else if (known[i] != shape.at(i))
                {
                    throw Error(name + ": a fixed axis was given another size");
                }
            }
        }
        void run() override
        {
            mCall.tokens = 0;
            for (auto const& tensor : mEngine.mIo)
            {
                if (mCall.addresses.count(tensor.name) == 0)
                {
                    throw Error(tensor.name + ": no address");
                }
                bool const isOpen = std::find(tensor.shape.begin(), tensor.shape.end(), -1) != tensor.shape.end();
                if (!tensor.isInput || !isOpen)
                {
                    continue;
                }
                int64_t const tokens = mTokens.at(tensor.name);
                if ((mCall.tokens != 0 && tokens != mCall.tokens) || (mProfile == 0 && tokens != 1)
                    || (mProfile == 1 && (tokens < 2 || tokens > mEngine.mMaxTokens)))
                {
                    throw Error(tensor.name + ": a shape outside the profile, or unlike another input's");
                }
                mCall.tokens = tokens;
            }
            mEngine.mDevice.queue(
                [&device = mEngine.mDevice, body = mEngine.mBody, call = mCall]
                {
                    for (auto const& [name, address] : call.addresses)
                    {
                        device.expectLive(address);
                    }
                    body(call);
                });
        }

    private:
        HostEngine& mEngine;
        int mProfile;
        Call mCall{};
        std::map<std::string, int64_t> mTokens;
    };

    IoTensor const& tensor(std::string const& name) const
    {
        for (auto const& one : mIo)
        {
            if (one.name == name)
            {
                return one;
            }
        }
        throw Error(name + ": no input or output of this engine");
    }

    HostDevice& mDevice;
    std::vector<IoTensor> mIo;
    int64_t mMaxTokens;
    std::function<void(Call const&)> mBody;
};

} // namespace glm_trt::test
