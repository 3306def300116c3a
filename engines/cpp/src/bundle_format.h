// Made of export/bundle/format.py by python -P -m glm_trt.export.bundle.generate; edit that.
#pragma once

#include "record.h"
#include "tensor.h"

#include <optional>
#include <string>
#include <vector>

namespace glm_trt
{

constexpr char kFileName[] = "manifest.json";
constexpr char kFormat[] = "glm-trt bundle";
constexpr int64_t kFormatVersion = 6;

//! What a runtime needs to know of the config: tokens, and the axes of activations.
struct ModelFacts
{
    int64_t vocabSize{};
    int64_t hiddenSize{};
    int64_t rotaryWidth{};            // the last axis of cos and sin
    int64_t indexTopk{};              // 0 without any indexer
    std::vector<int64_t> eosTokenIds; // where generation stops
};

template <typename Visit>
void eachField(ModelFacts& record, Visit&& visit)
{
    visit("vocab_size", record.vocabSize);
    visit("hidden_size", record.hiddenSize);
    visit("rotary_width", record.rotaryWidth);
    visit("index_topk", record.indexTopk);
    visit("eos_token_ids", record.eosTokenIds);
}

//! Where the layers of a kind keep one of their states, in the order of their graph's inputs.
struct StatePool
{
    std::string name; // the graph's input; the updated state is the output NAME_out
    std::string unit;
    std::vector<int64_t> shape;          // of a page or a slot
    std::optional<int64_t> positionAxis; // the axis of shape that is a page's positions
    std::optional<Dtype> dtype;          // null: the block's
};

template <typename Visit>
void eachField(StatePool& record, Visit&& visit)
{
    visit("name", record.name);
    visit("unit", record.unit);
    visit("shape", record.shape);
    visit("position_axis", record.positionAxis);
    visit("dtype", record.dtype);
}

//! One weight input of a block.
struct Binding
{
    std::string name;
    std::vector<std::string> tensors;
    std::vector<int64_t> shape;
    std::string transform;
    ByName<int64_t> arguments;
    std::optional<Dtype> dtype;
};

template <typename Visit>
void eachField(Binding& record, Visit&& visit)
{
    visit("name", record.name);
    visit("tensors", record.tensors);
    visit("shape", record.shape);
    visit("transform", record.transform);
    visit("arguments", record.arguments);
    visit("dtype", record.dtype);
}

//! A block of the model: embedding, layer, head, prediction layer or its head.
struct Block
{
    std::string name;
    std::string kind;
    std::optional<int64_t> layer; // null: the embedding's, and heads'
    std::vector<Binding> bindings;
};

template <typename Visit>
void eachField(Block& record, Visit&& visit)
{
    visit("name", record.name);
    visit("kind", record.kind);
    visit("layer", record.layer);
}

//! The ONNX file of a kind in a dtype.
struct Graph
{
    std::string kind;
    Dtype dtype{};
    std::string file;
};

template <typename Visit>
void eachField(Graph& record, Visit&& visit)
{
    visit("kind", record.kind);
    visit("dtype", record.dtype);
    visit("file", record.file);
}

//! A file of weights. `sha256` is null where all of them are too large to be hashed.
struct Shard
{
    std::string file;
    int64_t bytes{};
    std::string headerSha256;
    std::string sampleSha256; // of some pages of it
    std::optional<std::string> sha256;
};

template <typename Visit>
void eachField(Shard& record, Visit&& visit)
{
    visit("file", record.file);
    visit("bytes", record.bytes);
    visit("header_sha256", record.headerSha256);
    visit("sample_sha256", record.sampleSha256);
    visit("sha256", record.sha256);
}

//! Where the weights lie: in the checkpoint, or in the bundle.
struct CheckpointReference
{
    std::string directory; // relative to the bundle
    Dtype dtype{};
    std::vector<Shard> files;
};

template <typename Visit>
void eachField(CheckpointReference& record, Visit&& visit)
{
    visit("directory", record.directory);
    visit("dtype", record.dtype);
    visit("files", record.files);
}

//! A file of the bundle.
struct FileEntry
{
    int64_t bytes{};
    std::string sha256;
};

template <typename Visit>
void eachField(FileEntry& record, Visit&& visit)
{
    visit("bytes", record.bytes);
    visit("sha256", record.sha256);
}

//! A built engine of a kind in a dtype for a target.
struct EngineEntry
{
    std::string backend;
    std::string backendVersion;
    std::string target;
    std::string kind;
    Dtype dtype{};
    std::string file;
    std::string key; // of everything that made it
    std::string graphSha256;
    int64_t bytes{};
    double seconds{};
    int64_t peakMemoryBytes{};
    int64_t layers{};
    ByName<ByName<std::vector<int64_t>>> profiles; // by name, of each axis
    std::vector<std::string> plugins;              // op types that plugins run
    std::optional<std::string> pluginLibrary;      // SHA-256 of the library built with
};

template <typename Visit>
void eachField(EngineEntry& record, Visit&& visit)
{
    visit("backend", record.backend);
    visit("backend_version", record.backendVersion);
    visit("target", record.target);
    visit("kind", record.kind);
    visit("dtype", record.dtype);
    visit("file", record.file);
    visit("key", record.key);
    visit("graph_sha256", record.graphSha256);
    visit("bytes", record.bytes);
    visit("seconds", record.seconds);
    visit("peak_memory_bytes", record.peakMemoryBytes);
    visit("layers", record.layers);
    visit("profiles", record.profiles);
    visit("plugins", record.plugins);
    visit("plugin_library", record.pluginLibrary);
}

//! Manifest of a glm-trt bundle.
struct Manifest
{
    std::string format;
    int64_t formatVersion{};
    std::string sha256; // of this file with these 64 digits as zeros
    std::string key;    // of everything that made the graphs and bindings
    ByName<std::string> versions;
    Json config; // the checkpoint's config.json
    ModelFacts model;
    ByName<std::vector<StatePool>> states; // of each kind that has any
    std::vector<Dtype> dtypes;
    int64_t maxSeqLen{};
    bool materialized{};
    std::vector<Block> blocks;
    std::vector<Graph> graphs;
    std::string bindings;
    CheckpointReference checkpoint;
    std::vector<std::string> tokenizer;
    std::optional<std::string> library; // the plugin library, if engines were built with one
    ByName<FileEntry> files;
    std::vector<EngineEntry> engines;
};

template <typename Visit>
void eachField(Manifest& record, Visit&& visit)
{
    visit("format", record.format);
    visit("format_version", record.formatVersion);
    visit("sha256", record.sha256);
    visit("key", record.key);
    visit("versions", record.versions);
    visit("config", record.config);
    visit("model", record.model);
    visit("states", record.states);
    visit("dtypes", record.dtypes);
    visit("max_seq_len", record.maxSeqLen);
    visit("materialized", record.materialized);
    visit("blocks", record.blocks);
    visit("graphs", record.graphs);
    visit("bindings", record.bindings);
    visit("checkpoint", record.checkpoint);
    visit("tokenizer", record.tokenizer);
    visit("library", record.library);
    visit("files", record.files);
    visit("engines", record.engines);
}

using Bindings = ByName<std::vector<Binding>>;

} // namespace glm_trt
