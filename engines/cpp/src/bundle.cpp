#include "bundle.h"

#include "file.h"
#include "glm_trt/errors.h"
#include "manifest.h"
#include "references.h"

#include <algorithm>

namespace glm_trt
{
namespace
{

//! The state as inputs of graphs have it. Throws BundleError, which begins with `place`, for a pool that this release
//! does not run: its pages have all positions of a sequence.
StateSpec specOf(std::string const& place, StatePool const& pool, int64_t maxSeqLen)
{
    StateSpec spec{pool.name, {kBatchAxis}, pool.dtype};
    spec.axes.insert(spec.axes.end(), pool.shape.begin(), pool.shape.end());
    auto const size = static_cast<int64_t>(pool.shape.size());
    if (pool.positionAxis.has_value() != (pool.unit == "page") || pool.positionAxis.value_or(0) >= size)
    {
        throw BundleError(place + ": a page has an axis of positions, a slot has none");
    }
    if (pool.positionAxis)
    {
        int64_t& positions = spec.axes[static_cast<size_t>(*pool.positionAxis) + 1];
        if (positions != maxSeqLen)
        {
            throw BundleError(place + ": expected pages of " + std::to_string(maxSeqLen)
                + " positions (max_seq_len), found " + std::to_string(positions));
        }
        positions = kCapacityAxis;
    }
    return spec;
}

//! The checkpoint's shards, each as the manifest lists it.
TensorFiles openShards(std::filesystem::path const& root, std::vector<Shard> const& shards)
{
    std::vector<std::unique_ptr<SafetensorsFile>> opened;
    for (auto const& shard : shards)
    {
        auto const path = root / shard.file;
        verifyFile(path, shard.bytes, shard.sha256);
        opened.push_back(std::make_unique<SafetensorsFile>(path));
        if (shard.headerSha256 != opened.back()->headerSha256())
        {
            throw BundleError(path.string() + ": another header than when the bundle was exported");
        }
        if (shard.sampleSha256 != opened.back()->sampleSha256())
        {
            throw BundleError(path.string() + ": other weights than when the bundle was exported");
        }
    }
    return TensorFiles(std::move(opened));
}

} // namespace

bool StateSpec::hasCapacity() const
{
    return std::find(axes.begin(), axes.end(), kCapacityAxis) != axes.end();
}

Bundle Bundle::open(std::filesystem::path const& directory, std::filesystem::path const& checkpoint)
{
    Bundle bundle;
    bundle.mDirectory = directory;
    Manifest const& manifest = bundle.mManifest = readManifest(directory);
    checkListed((directory / kFileName).string(), manifest);
    for (auto const& [name, entry] : manifest.files)
    {
        verifyFile(directory / name, entry.bytes, entry.sha256);
    }
    auto const root = checkpoint.empty() ? directory / manifest.checkpoint.directory : checkpoint;
    std::error_code error;
    if (!std::filesystem::is_directory(root, error))
    {
        throw BundleError(directory.string() + ": its checkpoint is not at "
            + std::filesystem::weakly_canonical(std::filesystem::absolute(root)).string()
            + "; name the directory where it lies (--checkpoint), or export again");
    }
    bundle.mWeights = openShards(root, manifest.checkpoint.files);
    auto const path = directory / manifest.bindings;
    Bindings const bindings = parseBindings(path.string(), FileReader(path).rest());
    checkBindings(path.string(), manifest, bindings, bundle.mWeights);
    bundle.read(bindings);
    return bundle;
}

void Bundle::read(Bindings const& bindings)
{
    for (Block block : mManifest.blocks)
    {
        block.bindings = bindings.find(block.name)->second;
        bool const isPrediction = block.name.rfind("mtp.", 0) == 0;
        (isPrediction ? mPredictionBlocks : mBlocks).push_back(std::move(block));
    }
    auto const place = (mDirectory / kFileName).string() + ": states of ";
    for (auto const& [kind, pools] : mManifest.states)
    {
        auto& specs = mStates.add(kind);
        for (auto const& pool : pools)
        {
            specs.push_back(specOf(place + kind + ": " + pool.name, pool, mManifest.maxSeqLen));
        }
    }
}

std::vector<StateSpec> const& Bundle::states(std::string const& kind) const
{
    static std::vector<StateSpec> const kNone;
    auto const found = mStates.find(kind);
    return found == mStates.end() ? kNone : found->second;
}

} // namespace glm_trt
