#include "glm_trt/runtime.h"

#include "bundle.h"
#include "device.h"
#include "manifest.h"
#include "model.h"
#include "sampling.h"
#include "stopping.h"
#include "tensorrt.h"

#include <optional>

namespace glm_trt
{

struct Runtime::Impl
{
    ~Impl()
    {
        if (device != nullptr)
        {
            whileCurrent(*device,
                [this]
                {
                    weights.reset();
                    engines.clear();
                    tensorRt.reset();
                });
        }
    }

    // In this order: what is declared later is released first.
    std::unique_ptr<Device> device;
    std::shared_ptr<TensorRt> tensorRt;
    std::optional<Bundle> bundle;
    std::string dtype;
    Engines engines;
    std::optional<DeviceWeights> weights;
};

struct Sequence::Impl
{
    explicit Impl(std::shared_ptr<Runtime::Impl> of)
        : runtime(std::move(of))
        , model(*runtime->bundle, runtime->engines, *runtime->weights, runtime->dtype, *runtime->device)
    {
    }

    std::shared_ptr<Runtime::Impl> runtime; // with the weights and the device, as long as a sequence lives
    Model model;
    std::vector<int64_t> tokens;
};

Runtime Runtime::load(std::string const& directory, LoadOptions const& options)
{
    std::string const backend = options.backend.empty() ? defaultBackend() : options.backend;
    if (backend != "tensorrt" && backend != "tensorrt-rtx")
    {
        throw Error("backend '" + backend + "': expected tensorrt or tensorrt-rtx");
    }
    readManifest(directory);
    auto impl = std::make_shared<Impl>();
    // What the machine lacks is told before files are hashed, which may take minutes.
    impl->device = openGpu("backend '" + backend + "'");
    CurrentDevice const current(*impl->device);
    impl->tensorRt = openTensorRt(backend);
    impl->bundle = Bundle::open(directory, options.checkpoint);
    impl->dtype = options.dtype.empty() ? nameOf(impl->bundle->manifest().checkpoint.dtype) : options.dtype;
    impl->engines = loadTensorRtEngines(impl->tensorRt, *impl->bundle, backend, impl->dtype, *impl->device);
    Dtype const dtype = dtypeOf(impl->dtype).value();
    requireMemory(*impl->device, wholeMemory(*impl->bundle, impl->engines, dtype));
    impl->weights.emplace(*impl->bundle, dtype, *impl->device);
    return Runtime(impl);
}

Runtime::Runtime(std::shared_ptr<Impl> impl)
    : mImpl(std::move(impl))
{
}
Runtime::Runtime(Runtime&&) noexcept = default;
Runtime& Runtime::operator=(Runtime&&) noexcept = default;
Runtime::~Runtime() = default;

Sequence Runtime::sequence()
{
    return Sequence(std::make_unique<Sequence::Impl>(mImpl));
}

int64_t Runtime::maxSeqLen() const
{
    return mImpl->bundle->maxSeqLen();
}

int64_t Runtime::vocabSize() const
{
    return mImpl->bundle->manifest().model.vocabSize;
}

std::vector<int64_t> const& Runtime::endTokens() const
{
    return mImpl->bundle->manifest().model.eosTokenIds;
}

Sequence::Sequence(std::unique_ptr<Impl> impl)
    : mImpl(std::move(impl))
{
}
Sequence::Sequence(Sequence&&) noexcept = default;
Sequence& Sequence::operator=(Sequence&&) noexcept = default;
Sequence::~Sequence() = default;

std::vector<float> const& Sequence::prefill(std::vector<int64_t> const& ids)
{
    auto const& logits = mImpl->model.append(ids);
    mImpl->tokens.insert(mImpl->tokens.end(), ids.begin(), ids.end());
    return logits;
}

std::vector<float> const& Sequence::decode(int64_t id)
{
    return prefill({id});
}

Generated Sequence::generate(std::vector<int64_t> const& ids, GenerateOptions const& options,
    std::function<bool(int64_t)> const& onToken)
{
    Sampling const sampling{options.temperature, options.topK, options.topP, options.minP, options.repetitionPenalty,
        options.seed};
    sampling.check();
    if (options.maxNewTokens < 0)
    {
        throw Error("max_new_tokens: expected 0 or more, found " + std::to_string(options.maxNewTokens));
    }
    auto const& bundle = *mImpl->runtime->bundle;
    auto const endTokens = options.ignoreEnd ? std::vector<int64_t>{}
        : options.endTokens.empty()          ? bundle.manifest().model.eosTokenIds
                                             : options.endTokens;
    Generated result{{}, nameOf(Finish::kLength)};
    Finish finish = options.maxNewTokens == 0 ? Finish::kLength : Finish::kNone;
    std::vector<int64_t> next = ids;
    while (finish == Finish::kNone)
    {
        auto const& logits = prefill(next);
        int64_t const token
            = choose(logits.data(), bundle.manifest().model.vocabSize, sampling, length(), mImpl->tokens);
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

int64_t Sequence::length() const
{
    return mImpl->model.length();
}

void Sequence::reset()
{
    mImpl->model.reset();
    mImpl->tokens.clear();
}

State Sequence::save()
{
    SavedStates const saved = mImpl->model.save();
    auto const* data = reinterpret_cast<unsigned char const*>(saved.data.data());
    return {mImpl->tokens, std::vector<unsigned char>(data, data + saved.data.size())};
}

void Sequence::restore(State const& state)
{
    auto const* data = reinterpret_cast<std::byte const*>(state.data.data());
    mImpl->model.restore({static_cast<int64_t>(state.tokens.size()),
        std::vector<std::byte>(data, data + state.data.size())});
    mImpl->tokens = state.tokens;
}

bool Sequence::usesGraph() const
{
    return mImpl->model.isRecorded();
}

char const* defaultBackend()
{
    static std::string const kBackend = defaultTensorRt();
    return kBackend.c_str();
}

char const* version()
{
    return GLM_TRT_VERSION;
}

} // namespace glm_trt
