// Opening a bundle: every hash checked, blocks with their bindings, the checkpoint's weights.
#pragma once

#include "bundle_format.h"
#include "safetensors.h"

#include <filesystem>
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

class Bundle
{
public:
    //! Throws BundleError or CheckpointError for anything that is not whole. checkpoint: where the weights lie if they
    //! moved.
    static Bundle open(std::filesystem::path const& directory, std::filesystem::path const& checkpoint = {});

    //! What the bundle says of itself. Its blocks have no bindings here.
    Manifest const& manifest() const
    {
        return mManifest;
    }
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
    std::filesystem::path const& directory() const
    {
        return mDirectory;
    }
    int64_t maxSeqLen() const
    {
        return mManifest.maxSeqLen;
    }

private:
    Bundle() = default;
    void read(Bindings const& bindings);

    std::filesystem::path mDirectory;
    Manifest mManifest;
    std::vector<Block> mBlocks;
    std::vector<Block> mPredictionBlocks;
    ByName<std::vector<StateSpec>> mStates;
    TensorFiles mWeights;
};

} // namespace glm_trt
