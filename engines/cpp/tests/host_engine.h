// A device and engines of the test's own, on host memory: what is done to them is checked as TensorRT would.
#pragma once

#include "device.h"
#include "engine.h"
#include "glm_trt/errors.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

namespace glm_trt::test
{

//! Host memory; new memory holds NaN. Work is done at once, or kept while recording.
class HostDevice : public Device
{
public:
    std::byte* allocate(size_t bytes) override
    {
        ++allocations;
        auto* memory = static_cast<std::byte*>(std::malloc(bytes ? bytes : 1));
        std::memset(memory, 0xFF, bytes);
        return memory;
    }
    void release(std::byte* memory) noexcept override
    {
        std::free(memory);
    }
    void upload(std::byte* to, void const* from, size_t bytes) override
    {
        if (mKept != nullptr)
        {
            throw Error("an upload of pageable memory cannot be recorded");
        }
        std::memcpy(to, from, bytes);
    }
    void download(void* to, std::byte const* from, size_t bytes) override
    {
        std::memcpy(to, from, bytes);
    }
    void copy(std::byte* to, std::byte const* from, size_t bytes) override
    {
        queue([=] { std::memcpy(to, from, bytes); });
    }
    void clear(std::byte* to, size_t bytes) override
    {
        queue([=] { std::memset(to, 0, bytes); });
    }
    void synchronize() override {}
    size_t freeBytes() override
    {
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
    //! Now, or as part of what is recorded.
    void queue(std::function<void()> work)
    {
        if (mKept != nullptr)
        {
            mKept->push_back(std::move(work));
        }
        else
        {
            work();
        }
    }

    size_t free{1 << 30};
    size_t allocations{0};
    size_t launches{0};
    bool canRecord{true};

private:
    struct Recorded : RecordedWork
    {
        explicit Recorded(HostDevice& of)
            : device(of)
        {
        }
        void launch() override
        {
            ++device.launches;
            for (auto const& item : work)
            {
                item();
            }
        }
        HostDevice& device;
        std::vector<std::function<void()>> work;
    };
    std::vector<std::function<void()>>* mKept{nullptr};
};

//! What a run sees.
struct Call
{
    std::map<std::string, std::byte*> addresses;
    int64_t tokens;

    template <typename T>
    T* at(std::string const& name) const
    {
        return reinterpret_cast<T*>(addresses.at(name));
    }
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
            mEngine.mDevice.queue([body = mEngine.mBody, call = mCall] { body(call); });
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
