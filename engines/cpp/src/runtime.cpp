#include "glm_trt/runtime.h"

#include "bundle.h"
#include "device.h"
#include "model.h"
#include "sampling.h"
#include "stopping.h"
#include "tensorrt.h"

namespace glm_trt
{

struct Runtime::Impl
{
    // In this order: what is declared later is released first.
    Bundle bundle;
    std::unique_ptr<Device> device;
    std::string dtype;
    Engines engines;
};

struct Session::Impl
{
    Bundle const& bundle;
    Model model;
    std::vector<int64_t> tokens;
};

Runtime Runtime::load(std::string const& directory, LoadOptions const& options)
{
    if (options.backend != "tensorrt" && options.backend != "tensorrt-rtx")
    {
        throw Error("backend '" + options.backend + "': expected tensorrt or tensorrt-rtx");
    }
    auto impl = std::unique_ptr<Impl>(new Impl{Bundle::open(directory, options.checkpoint), {}, {}, {}});
    impl->dtype = options.dtype.empty() ? impl->bundle.dtype() : options.dtype;
    impl->device = openGpu("backend '" + options.backend + "'");
    impl->engines = loadTensorRtEngines(impl->bundle, options.backend, impl->dtype, *impl->device);
    return Runtime(std::move(impl));
}

Runtime::Runtime(std::unique_ptr<Impl> impl)
    : mImpl(std::move(impl))
{
}
Runtime::Runtime(Runtime&&) noexcept = default;
Runtime& Runtime::operator=(Runtime&&) noexcept = default;
Runtime::~Runtime() = default;

Session Runtime::session()
{
    return Session(std::unique_ptr<Session::Impl>(new Session::Impl{
        mImpl->bundle, Model(mImpl->bundle, mImpl->engines, mImpl->dtype, *mImpl->device), {}}));
}

int64_t Runtime::maxSeqLen() const
{
    return mImpl->bundle.maxSeqLen();
}

int64_t Runtime::vocabSize() const
{
    return mImpl->bundle.vocabSize();
}

std::vector<int64_t> const& Runtime::endTokens() const
{
    return mImpl->bundle.eosTokenIds();
}

Session::Session(std::unique_ptr<Impl> impl)
    : mImpl(std::move(impl))
{
}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

std::vector<float> const& Session::prefill(std::vector<int64_t> const& ids)
{
    auto const& logits = mImpl->model.append(ids);
    mImpl->tokens.insert(mImpl->tokens.end(), ids.begin(), ids.end());
    return logits;
}

std::vector<float> const& Session::decode(int64_t id)
{
    return prefill({id});
}

Generated Session::generate(std::vector<int64_t> const& ids, GenerateOptions const& options,
    std::function<bool(int64_t)> const& onToken)
{
    Sampling const sampling{options.temperature, options.topK, options.topP, options.minP, options.repetitionPenalty,
        options.seed};
    sampling.check();
    if (options.maxNewTokens < 0)
    {
        throw Error("max_new_tokens: expected 0 or more, found " + std::to_string(options.maxNewTokens));
    }
    auto const& bundle = mImpl->bundle;
    auto const endTokens = options.ignoreEnd ? std::vector<int64_t>{}
        : options.endTokens.empty()          ? bundle.eosTokenIds()
                                             : options.endTokens;
    Generated result{{}, nameOf(Finish::kLength)};
    Finish finish = options.maxNewTokens == 0 ? Finish::kLength : Finish::kNone;
    std::vector<int64_t> next = ids;
    while (finish == Finish::kNone)
    {
        auto const& logits = prefill(next);
        int64_t const token
            = choose(logits.data(), bundle.vocabSize(), sampling, length(), mImpl->tokens);
        result.tokens.push_back(token);
        bool const room = length() < bundle.maxSeqLen();
        finish = finishOf(
            token, static_cast<int64_t>(result.tokens.size()), options.maxNewTokens, room, endTokens);
        if (onToken && !onToken(token) && finish == Finish::kNone)
        {
            finish = Finish::kCancelled;
        }
        next = {token};
    }
    result.finishReason = nameOf(finish);
    return result;
}

int64_t Session::length() const
{
    return mImpl->model.length();
}

void Session::reset()
{
    mImpl->model.reset();
    mImpl->tokens.clear();
}

State Session::save()
{
    SavedStates const saved = mImpl->model.save();
    auto const* data = reinterpret_cast<unsigned char const*>(saved.data.data());
    return {mImpl->tokens, std::vector<unsigned char>(data, data + saved.data.size())};
}

void Session::restore(State const& state)
{
    auto const* data = reinterpret_cast<std::byte const*>(state.data.data());
    mImpl->model.restore({static_cast<int64_t>(state.tokens.size()),
        std::vector<std::byte>(data, data + state.data.size())});
    mImpl->tokens = state.tokens;
}

bool Session::usesGraph() const
{
    return mImpl->model.isRecorded();
}

char const* version()
{
    return GLM_TRT_VERSION;
}

} // namespace glm_trt
