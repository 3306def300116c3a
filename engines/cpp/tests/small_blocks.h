// The blocks of small_model.h: what each does to its inputs and outputs, on host memory.
#pragma once

#include "engine.h"

#include <cstddef>
#include <map>
#include <stdexcept>

namespace glm_trt::test
{

constexpr int64_t kVocab = 7;
constexpr int64_t kHidden = 4;
constexpr int64_t kWidth = 3;    // of the states
constexpr int64_t kCapacity = 20;
constexpr int64_t kSelected = 2;
constexpr int64_t kMaxTokens = 5;

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

inline void embed(Call const& call)
{
    for (int64_t s = 0; s < call.tokens; ++s)
    {
        auto const id = call.at<int64_t>("input_ids")[s];
        auto const position = static_cast<float>(*call.at<int64_t>("past_lengths") + s);
        for (int64_t h = 0; h < kHidden; ++h)
        {
            call.at<float>("hidden_out")[s * kHidden + h] = call.at<float>("embed_tokens.weight")[id * kHidden + h];
        }
        call.at<float>("cos")[s] = position;
        call.at<float>("sin")[s] = position / 2;
    }
}

//! Adds the mean of all that the cache holds up to each token.
inline void attend(Call const& call)
{
    int64_t const past = *call.at<int64_t>("past_lengths");
    auto* cache = call.at<float>("kv_cache");
    if (cache != call.at<float>("kv_cache_out"))
    {
        throw std::runtime_error("a cache is to be written in place");
    }
    for (int64_t s = 0; s < call.tokens; ++s)
    {
        auto const* hidden = call.at<float>("hidden") + s * kHidden;
        for (int64_t j = 0; j < kWidth; ++j)
        {
            cache[(past + s) * kWidth + j] = hidden[j] * call.at<float>("w")[j] + call.at<float>("cos")[s] / 64;
        }
        for (int64_t h = 0; h < kHidden; ++h)
        {
            float sum = 0;
            for (int64_t p = 0; p <= past + s; ++p)
            {
                sum += cache[p * kWidth + h % kWidth];
            }
            call.at<float>("hidden_out")[s * kHidden + h]
                = hidden[h] + sum / static_cast<float>(past + s + 1) + call.at<float>("sin")[s] / 64;
        }
        for (int64_t k = 0; k < kSelected; ++k)
        {
            call.at<int32_t>("topk_indices")[s * kSelected + k] = static_cast<int32_t>(past + s + k);
        }
    }
}

//! A state that halves and gathers.
inline void sum(Call const& call)
{
    if (call.at<float>("recurrent_state") == call.at<float>("recurrent_state_out")
        || *call.at<int64_t>("lengths") != call.tokens)
    {
        throw std::runtime_error("a state that sums up needs two buffers, and the number of tokens");
    }
    std::vector<float> state(call.at<float>("recurrent_state"), call.at<float>("recurrent_state") + kWidth);
    for (int64_t s = 0; s < call.tokens; ++s)
    {
        auto const* hidden = call.at<float>("hidden") + s * kHidden;
        auto const chosen = static_cast<float>(call.at<int32_t>("shared_indices")[s * kSelected + 1]);
        for (int64_t h = 0; h < kHidden; ++h)
        {
            float& one = state[h % kWidth];
            one = one / 2 + hidden[h] * call.at<float>("w")[h];
            call.at<float>("hidden_out")[s * kHidden + h] = hidden[h] + one + chosen / 64;
        }
    }
    std::copy(state.begin(), state.end(), call.at<float>("recurrent_state_out"));
}

inline void project(Call const& call)
{
    for (int64_t v = 0; v < kVocab; ++v)
    {
        float logit = 0;
        for (int64_t h = 0; h < kHidden; ++h)
        {
            logit += call.at<float>("hidden")[h] * call.at<float>("norm.weight")[h]
                * call.at<float>("lm_head.weight")[v * kHidden + h];
        }
        call.at<float>("logits")[v] = logit;
    }
}

struct SmallBlock
{
    char const* kind;
    std::vector<IoTensor> io;
    void (*body)(Call const&);
};

inline std::vector<SmallBlock> smallBlocks()
{
    std::vector<int64_t> const wide{1, -1, kHidden};
    std::vector<int64_t> const angle{1, -1, 1};
    std::vector<int64_t> const cache{1, 1, kCapacity, kWidth};
    std::vector<int64_t> const selected{1, -1, kSelected};
    return {
        {"embedding",
            {{"input_ids", true, 8, {1, -1}}, {"past_lengths", true, 8, {1}},
                {"embed_tokens.weight", true, 4, {kVocab, kHidden}}, {"hidden_out", false, 4, wide},
                {"cos", false, 4, angle}, {"sin", false, 4, angle}},
            embed},
        {"cached",
            {{"hidden", true, 4, wide}, {"cos", true, 4, angle}, {"sin", true, 4, angle},
                {"past_lengths", true, 8, {1}}, {"kv_cache", true, 4, cache}, {"w", true, 4, {kHidden}},
                {"hidden_out", false, 4, wide}, {"kv_cache_out", false, 4, cache},
                {"topk_indices", false, 4, selected}},
            attend},
        {"summed",
            {{"hidden", true, 4, wide}, {"lengths", true, 8, {1}}, {"shared_indices", true, 4, selected},
                {"recurrent_state", true, 4, {1, kWidth}}, {"w", true, 4, {kHidden}},
                {"hidden_out", false, 4, wide}, {"recurrent_state_out", false, 4, {1, kWidth}}},
            sum},
        {"head",
            {{"hidden", true, 4, wide}, {"norm.weight", true, 4, {kHidden}},
                {"lm_head.weight", true, 4, {kVocab, kHidden}}, {"logits", false, 4, {1, -1, kVocab}}},
            project},
    };
}

} // namespace glm_trt::test
