// Opening a bundle: every hash checked, blocks with their bindings, the checkpoint's weights.
#pragma once

#include "bindings.h"
#include "json.h"

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace glm_trt
{

constexpr int64_t kBatchAxis = -1;
constexpr int64_t kCapacityAxis = -2;

//! One state of a layer: the graph's input `name`, updated in the output name_out.
struct StateSpec
{
    std::string name;
    std::vector<int64_t> axes;  // kBatchAxis, kCapacityAxis, or a size
    std::optional<Dtype> dtype; // whatever the block's own is

    bool hasCapacity() const;
};

struct Block
{
    std::string name;
    std::string kind;
    std::optional<int64_t> layer;
    std::vector<Binding> bindings;
};

//! A built engine. `profiles`: name -> axis -> [min, opt, max].
struct EngineFile
{
    std::string backend;
    std::string backendVersion;
    std::string target;
    std::string kind;
    std::string dtype;
    std::filesystem::path path;
    std::optional<std::string> pluginLibrary; // SHA-256
    Json profiles;
};

class Bundle
{
public:
    //! Throws BundleError or CheckpointError for anything that is not whole. checkpoint: where the weights lie if they
    //! moved.
    static Bundle open(std::filesystem::path const& directory, std::filesystem::path const& checkpoint = {});

    //! Of a pass, in its order: embedding, layer.N, head.
    std::vector<Block> const& blocks() const
    {
        return mBlocks;
    }
    //! Of the multi-token-prediction layers: mtp.N, mtp.N.head.
    std::vector<Block> const& predictionBlocks() const
    {
        return mPredictionBlocks;
    }
    //! Of a kind; none has none.
    std::vector<StateSpec> const& states(std::string const& kind) const;
    TensorFiles const& weights() const
    {
        return mWeights;
    }
    std::vector<EngineFile> const& engines() const
    {
        return mEngines;
    }
    //! What the engines' plugins are in.
    std::optional<std::filesystem::path> pluginLibrary() const;
    std::filesystem::path const& directory() const
    {
        return mDirectory;
    }
    int64_t maxSeqLen() const
    {
        return mMaxSeqLen;
    }
    int64_t vocabSize() const
    {
        return mVocabSize;
    }
    int64_t hiddenSize() const
    {
        return mHiddenSize;
    }
    int64_t rotaryWidth() const
    {
        return mRotaryWidth;
    }
    int64_t indexTopk() const
    {
        return mIndexTopk;
    }
    //! The checkpoint's dtype, which engines are built in.
    std::string const& dtype() const
    {
        return mDtype;
    }
    std::vector<int64_t> const& eosTokenIds() const
    {
        return mEosTokenIds;
    }

private:
    Bundle() = default;
    void read(Json const& manifest, Json const& bindings);

    std::filesystem::path mDirectory;
    std::vector<Block> mBlocks;
    std::vector<Block> mPredictionBlocks;
    std::map<std::string, std::vector<StateSpec>> mStates;
    std::vector<EngineFile> mEngines;
    TensorFiles mWeights;
    int64_t mMaxSeqLen{0};
    int64_t mVocabSize{0};
    int64_t mHiddenSize{0};
    int64_t mRotaryWidth{0};
    int64_t mIndexTopk{0};
    std::string mDtype;
    std::vector<int64_t> mEosTokenIds;
};

//! The bindings of bindings.json's content by block. Throws BundleError that begins with `path`.
std::map<std::string, std::vector<Binding>> parseBindings(std::string const& path, Json const& content);

} // namespace glm_trt
