// A bundle and engines of the tests' own: arithmetic in which a swapped buffer, a wrong length, a stale state or a weight
// of another layer shows; `expected` computes the same without any of it.
#pragma once

#include "bundle.h"
#include "host_engine.h"
#include "manifest.h"
#include "memory_use.h"
#include "sha256.h"

#include <cmath>
#include <fstream>

namespace glm_trt::test
{

namespace fs = std::filesystem;

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

//! What late_tensorrt.cpp reads: a block, the plugin that it needs, its profiles, the last of which needs the least scratch
//! where the most is needed, and the first of which takes several tokens in one.
inline std::string planOf(SmallBlock const& block)
{
    std::string const kind = block.kind;
    std::string plan = kind + (kind == "summed" ? " Summing\n" : " -\n");
    std::string const one = kind == "head" ? "profile 1 1 900\n" : kind == "cached" ? "profile 1 1 1100\n"
                                                                                    : "profile 1 1 1300\n";
    std::string const several = "profile 2 " + std::to_string(kMaxTokens) + " 700\n";
    plan += kind == "head" ? one : kind == "cached" ? several + one : one + several;
    for (auto const& tensor : block.io)
    {
        plan += "io " + tensor.name + (tensor.isInput ? " in " : " out ") + std::to_string(tensor.elementBytes);
        for (int64_t const size : tensor.shape)
        {
            plan += ' ' + std::to_string(size);
        }
        plan += '\n';
    }
    return plan;
}

//! Entries of the manifest for the engines, which are written.
inline Json writeEngines(fs::path const& place, Json& files)
{
    std::string const zeros(64, '0');
    fs::create_directories(place / "engines");
    fs::create_directories(place / "plugins");
    std::string const library = "plugins/libglm_trt_plugins.so";
    write(place / library, "Summing\n");
    files[library] = fileEntry(place / library);
    Json entries = Json::array();
    for (auto const& block : smallBlocks())
    {
        std::string const file = std::string("engines/") + block.kind + ".plan";
        write(place / file, planOf(block));
        files[file] = fileEntry(place / file);
        entries.push_back({{"backend", "tensorrt"}, {"backend_version", "10"}, {"target", "sm90"},
            {"kind", block.kind}, {"dtype", "float32"}, {"file", file}, {"key", zeros}, {"graph_sha256", zeros},
            {"bytes", fs::file_size(place / file)}, {"seconds", 1}, {"peak_memory_bytes", 1}, {"layers", 1},
            {"profiles", Json::object()}, {"plugins", Json::array()}, {"plugin_library", files[library]["sha256"]}});
    }
    return entries;
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
    auto const block = [](char const* name, char const* kind) { return Json{{"name", name}, {"kind", kind}, {"layer", nullptr}}; };
    Json manifest{{"sha256", zeros}, {"format", "glm-trt bundle"}, {"format_version", 6}, {"key", zeros},
        {"versions", Json::object()}, {"config", Json::object()},
        {"model", {{"vocab_size", kVocab}, {"hidden_size", kHidden}, {"rotary_width", 1}, {"index_topk", kSelected},
                      {"eos_token_ids", {6}}}},
        {"states",
            {{"cached", Json::array({{{"name", "kv_cache"}, {"unit", "page"}, {"shape", {1, kCapacity, kWidth}},
                            {"position_axis", 1}, {"dtype", nullptr}}})},
                {"summed", Json::array({{{"name", "recurrent_state"}, {"unit", "slot"},
                               {"shape", Json::array({kWidth})}, {"position_axis", nullptr}, {"dtype", "float32"}}})}}},
        {"dtypes", {"float32"}}, {"max_seq_len", kCapacity}, {"materialized", false},
        {"blocks", {block("embedding", "embedding"), block("layer.0", "cached"), block("layer.1", "summed"),
                       block("layer.2", "cached"), block("head", "head")}},
        {"graphs", Json::array()}, {"bindings", "bindings.json"},
        {"checkpoint", {{"directory", "."}, {"dtype", "float32"}, {"files", Json::array({file})}}},
        {"tokenizer", Json::array()}, {"library", "plugins/libglm_trt_plugins.so"}, {"files", {{"bindings.json", fileEntry(place / "bindings.json")}}}};
    manifest["engines"] = writeEngines(place, manifest["files"]);
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

//! mostTokens: of the kinds where it is not kMaxTokens.
inline Engines makeEngines(HostDevice& device, std::map<std::string, int64_t> const& mostTokens = {})
{
    Engines engines;
    for (auto const& block : smallBlocks())
    {
        auto const most = mostTokens.find(block.kind);
        engines[block.kind] = std::make_shared<HostEngine>(
            device, block.io, most == mostTokens.end() ? kMaxTokens : most->second, block.body);
    }
    return engines;
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
