// A bundle and engines of the tests' own: arithmetic in which a swapped buffer, a wrong length, a stale state or a weight
// of another layer shows; `expected` computes the same without any of it.
#pragma once

#include "bundle.h"
#include "host_engine.h"
#include "manifest.h"
#include "memory_plan.h"
#include "sha256.h"

#include <cmath>
#include <fstream>

namespace glm_trt::test
{

namespace fs = std::filesystem;

constexpr int64_t kVocab = 7;
constexpr int64_t kHidden = 4;
constexpr int64_t kWidth = 3;    // of the states
constexpr int64_t kCapacity = 20;
constexpr int64_t kSelected = 2;
constexpr int64_t kMaxTokens = 5;

inline float weightOf(size_t tensor, size_t i)
{
    return static_cast<float>((tensor * 37 + i * 11) % 17) / 16 - 0.5F;
}

struct Weight
{
    char const* name;
    std::vector<int64_t> shape;
};

inline std::vector<Weight> const kWeights{{"embed", {kVocab, kHidden}}, {"layer.0.w", {kHidden}}, {"layer.1.w", {kHidden}},
    {"layer.2.w", {kHidden}}, {"norm", {kHidden}}};

inline size_t count(std::vector<int64_t> const& shape)
{
    size_t product = 1;
    for (int64_t const size : shape)
    {
        product *= static_cast<size_t>(size);
    }
    return product;
}

inline void write(fs::path const& path, std::string const& content)
{
    std::ofstream(path, std::ios::binary) << content;
}

inline Json fileEntry(fs::path const& path)
{
    return {{"bytes", fs::file_size(path)}, {"sha256", sha256OfFile(path)}};
}

inline Json bindingOf(char const* name, Weight const& weight)
{
    return {{"name", name}, {"tensors", {weight.name}}, {"shape", weight.shape}, {"transform", "none"},
        {"arguments", Json::object()}, {"dtype", nullptr}};
}

//! Blocks: embedding, a cached layer, a layer with a state that sums up, another cached one, a tied head.
inline void writeFiles(fs::path const& place)
{
    fs::create_directories(place);
    Json header = Json::object();
    std::string data;
    for (size_t tensor = 0; tensor < kWeights.size(); ++tensor)
    {
        auto const& weight = kWeights[tensor];
        size_t const begin = data.size();
        for (size_t i = 0; i < count(weight.shape); ++i)
        {
            float const value = weightOf(tensor, i);
            data.append(reinterpret_cast<char const*>(&value), sizeof value);
        }
        header[weight.name]
            = {{"dtype", "F32"}, {"shape", weight.shape}, {"data_offsets", {begin, data.size()}}};
    }
    std::string const text = header.dump();
    uint64_t const length = text.size();
    write(place / "model.safetensors", std::string(reinterpret_cast<char const*>(&length), 8) + text + data);
    Json const bindings{{"embedding", {bindingOf("embed_tokens.weight", kWeights[0])}},
        {"layer.0", {bindingOf("w", kWeights[1])}}, {"layer.1", {bindingOf("w", kWeights[2])}},
        {"layer.2", {bindingOf("w", kWeights[3])}},
        {"head", {bindingOf("norm.weight", kWeights[4]), bindingOf("lm_head.weight", kWeights[0])}}};
    write(place / "bindings.json", bindings.dump());
    SafetensorsFile const shard(place / "model.safetensors");
    Json file = fileEntry(place / "model.safetensors");
    file["file"] = "model.safetensors";
    file["header_sha256"] = shard.headerSha256();
    file["sample_sha256"] = shard.sampleSha256();
    std::string const zeros(64, '0');
    auto const block = [](char const* name, char const* kind) { return Json{{"name", name}, {"kind", kind}}; };
    Json manifest{{"sha256", zeros}, {"format", "glm-trt bundle"}, {"format_version", 5}, {"key", zeros},
        {"versions", Json::object()}, {"config", Json::object()},
        {"model", {{"vocab_size", kVocab}, {"hidden_size", kHidden}, {"rotary_width", 1}, {"index_topk", kSelected},
                      {"eos_token_ids", {6}}}},
        {"states",
            {{"cached", {{{"name", "kv_cache"}, {"axes", {"batch", 1, "capacity", kWidth}}, {"dtype", nullptr}}}},
                {"summed", {{{"name", "recurrent_state"}, {"axes", {"batch", kWidth}}, {"dtype", "float32"}}}}}},
        {"dtypes", {"float32"}}, {"max_seq_len", kCapacity}, {"materialized", false},
        {"blocks", {block("embedding", "embedding"), block("layer.0", "cached"), block("layer.1", "summed"),
                       block("layer.2", "cached"), block("head", "head")}},
        {"graphs", Json::array()}, {"bindings", "bindings.json"},
        {"checkpoint", {{"directory", "."}, {"dtype", "float32"}, {"files", Json::array({file})}}},
        {"tokenizer", Json::array()}, {"files", {{"bindings.json", fileEntry(place / "bindings.json")}}},
        {"engines", Json::array()}};
    std::string blank = manifest.dump();
    Sha256 digest;
    digest.update(blank.data(), blank.size());
    blank.replace(blank.find(zeros), zeros.size(), digest.hex());
    write(place / "manifest.json", blank);
}

inline Bundle writeBundle(fs::path const& place)
{
    writeFiles(place);
    return Bundle::open(place);
}

inline IoTensor io(char const* name, bool isInput, std::vector<int64_t> shape, size_t bytes = 4)
{
    return {name, isInput, bytes, std::move(shape)};
}

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
        throw Error("a cache is to be written in place");
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
        throw Error("a state that sums up needs two buffers, and the number of tokens");
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

//! mostTokens: of the kinds where it is not kMaxTokens.
inline Engines makeEngines(HostDevice& device, std::map<std::string, int64_t> const& mostTokens = {})
{
    std::vector<int64_t> const wide{1, -1, kHidden};
    std::vector<int64_t> const angle{1, -1, 1};
    std::vector<int64_t> const cache{1, 1, kCapacity, kWidth};
    std::vector<int64_t> const selected{1, -1, kSelected};
    auto const make = [&](char const* kind, std::vector<IoTensor> tensors, void (*body)(Call const&))
    {
        auto const most = mostTokens.find(kind);
        return std::make_pair(std::string(kind),
            std::make_shared<HostEngine>(
                device, std::move(tensors), most == mostTokens.end() ? kMaxTokens : most->second, body));
    };
    return {
        make("embedding", {io("input_ids", true, {1, -1}, 8), io("past_lengths", true, {1}, 8),
                               io("embed_tokens.weight", true, {kVocab, kHidden}), io("hidden_out", false, wide),
                               io("cos", false, angle), io("sin", false, angle)},
                          embed),
        make("cached", {io("hidden", true, wide), io("cos", true, angle), io("sin", true, angle),
                            io("past_lengths", true, {1}, 8), io("kv_cache", true, cache), io("w", true, {kHidden}),
                            io("hidden_out", false, wide), io("kv_cache_out", false, cache),
                            io("topk_indices", false, selected)},
                       attend),
        make("summed", {io("hidden", true, wide), io("lengths", true, {1}, 8), io("shared_indices", true, selected),
                            io("recurrent_state", true, {1, kWidth}), io("w", true, {kHidden}),
                            io("hidden_out", false, wide), io("recurrent_state_out", false, {1, kWidth})},
                       sum),
        make("head", {io("hidden", true, wide), io("norm.weight", true, {kHidden}),
                          io("lm_head.weight", true, {kVocab, kHidden}), io("logits", false, {1, -1, kVocab})},
                     project),
    };
}

//! The logits of the last of `ids`, from nothing but the definition.
inline std::vector<float> expected(std::vector<int64_t> const& ids)
{
    std::vector<std::vector<float>> hidden;
    for (int64_t const id : ids)
    {
        std::vector<float> row(kHidden);
        for (size_t h = 0; h < row.size(); ++h)
        {
            row[h] = weightOf(0, static_cast<size_t>(id * kHidden) + h);
        }
        hidden.push_back(row);
    }
    for (size_t layer = 0; layer < 3; ++layer)
    {
        std::vector<float> state(kWidth, 0);
        std::vector<std::vector<float>> cache;
        for (size_t s = 0; s < ids.size(); ++s)
        {
            auto& row = hidden[s];
            auto const position = static_cast<float>(s);
            std::vector<float> const before = row;
            if (layer == 1)
            {
                for (size_t h = 0; h < row.size(); ++h)
                {
                    float& one = state[h % kWidth];
                    one = one / 2 + before[h] * weightOf(2, h);
                    row[h] = before[h] + one + (position + 1) / 64;
                }
                continue;
            }
            cache.emplace_back(kWidth);
            for (size_t j = 0; j < kWidth; ++j)
            {
                cache.back()[j] = before[j] * weightOf(layer + 1, j) + position / 64;
            }
            for (size_t h = 0; h < row.size(); ++h)
            {
                float sum = 0;
                for (auto const& entry : cache)
                {
                    sum += entry[h % kWidth];
                }
                row[h] = before[h] + sum / (position + 1) + position / 2 / 64;
            }
        }
    }
    std::vector<float> logits(kVocab);
    for (size_t v = 0; v < logits.size(); ++v)
    {
        for (size_t h = 0; h < kHidden; ++h)
        {
            logits[v] += hidden.back()[h] * weightOf(4, h) * weightOf(0, v * kHidden + h);
        }
    }
    return logits;
}

inline bool equal(std::vector<float> const& a, std::vector<float> const& b)
{
    bool good = a.size() == b.size();
    for (size_t i = 0; good && i < a.size(); ++i)
    {
        good = std::abs(a[i] - b[i]) < 1e-5F;
    }
    return good;
}

inline std::vector<int64_t> tokens(size_t count)
{
    std::vector<int64_t> ids;
    for (size_t i = 0; i < count; ++i)
    {
        ids.push_back(static_cast<int64_t>((i * i + 3 * i + 1) % kVocab));
    }
    return ids;
}

inline std::vector<int64_t> part(std::vector<int64_t> const& ids, size_t begin, size_t end)
{
    return {ids.begin() + static_cast<long>(begin), ids.begin() + static_cast<long>(end)};
}

} // namespace glm_trt::test
