#include "bundle.h"

#include "file.h"
#include "glm_trt/errors.h"
#include "manifest.h"

#include <algorithm>

namespace glm_trt
{
namespace
{

constexpr char kPluginLibrary[] = "plugins/libglm_trt_plugins.so";

std::optional<Dtype> optionalDtype(Json const& name)
{
    return name.is_null() ? std::nullopt : dtypeOf(name.get<std::string>());
}

Binding readBinding(Json const& row)
{
    Binding binding;
    binding.name = row.at("name").get<std::string>();
    binding.tensors = row.at("tensors").get<std::vector<std::string>>();
    binding.transform = row.at("transform").get<std::string>();
    binding.arguments = row.at("arguments").get<std::map<std::string, int64_t>>();
    binding.shape = row.at("shape").get<std::vector<int64_t>>();
    binding.dtype = optionalDtype(row.at("dtype"));
    if (binding.tensors.empty())
    {
        throw nlohmann::detail::other_error::create(501, "no tensors", nullptr);
    }
    return binding;
}

StateSpec readState(Json const& row)
{
    StateSpec spec{row.at("name").get<std::string>(), {}, optionalDtype(row.at("dtype"))};
    for (auto const& axis : row.at("axes"))
    {
        spec.axes.push_back(axis.is_string() ? (axis == "batch" ? kBatchAxis : kCapacityAxis) : axis.get<int64_t>());
    }
    return spec;
}

//! The checkpoint's shards, each as the manifest lists it.
TensorFiles openShards(std::filesystem::path const& root, Json const& files)
{
    std::vector<std::unique_ptr<SafetensorsFile>> opened;
    for (auto const& entry : files)
    {
        auto const path = root / entry.at("file").get<std::string>();
        verifyFile(path, entry);
        opened.push_back(std::make_unique<SafetensorsFile>(path));
        if (entry.at("header_sha256") != opened.back()->headerSha256())
        {
            throw BundleError(path.string() + ": another header than when the bundle was exported");
        }
        if (entry.at("sample_sha256") != opened.back()->sampleSha256())
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

std::map<std::string, std::vector<Binding>> parseBindings(std::string const& path, Json const& content)
{
    try
    {
        std::map<std::string, std::vector<Binding>> bindings;
        for (auto const& [block, rows] : content.get_ref<Json::object_t const&>())
        {
            for (auto const& row : rows)
            {
                bindings[block].push_back(readBinding(row));
            }
        }
        return bindings;
    }
    catch (Json::exception const&)
    {
        throw BundleError(path + ": not the bindings of a bundle");
    }
}

Bundle Bundle::open(std::filesystem::path const& directory, std::filesystem::path const& checkpoint)
{
    Json const manifest = readManifest(directory);
    for (auto const& [name, entry] : manifest.at("files").items())
    {
        verifyFile(directory / name, entry);
    }
    Json const& source = manifest.at("checkpoint");
    auto const root = checkpoint.empty() ? directory / source.at("directory").get<std::string>() : checkpoint;
    std::error_code error;
    if (!std::filesystem::is_directory(root, error))
    {
        throw BundleError(directory.string() + ": its checkpoint is not at "
            + std::filesystem::weakly_canonical(std::filesystem::absolute(root)).string()
            + "; name the directory where it lies (--checkpoint), or export again");
    }
    Bundle bundle;
    bundle.mDirectory = directory;
    bundle.mWeights = openShards(root, source.at("files"));
    auto const path = directory / manifest.at("bindings").get<std::string>();
    Json bindings;
    try
    {
        bindings = parseJson(FileReader(path).rest());
    }
    catch (std::runtime_error const&)
    {
        throw BundleError(path.string() + ": not the bindings of a bundle");
    }
    bundle.read(manifest, bindings);
    return bundle;
}

void Bundle::read(Json const& manifest, Json const& bindings)
{
    auto const path = (mDirectory / manifest.at("bindings").get<std::string>()).string();
    auto const byBlock = parseBindings(path, bindings);
    for (auto const& entry : manifest.at("blocks"))
    {
        Block block{entry.at("name").get<std::string>(), entry.at("kind").get<std::string>(), {}, {}};
        if (Json const* layer = find(entry, "layer"))
        {
            block.layer = layer->get<int64_t>();
        }
        auto const found = byBlock.find(block.name);
        if (found == byBlock.end())
        {
            throw BundleError(path + ": no bindings of block " + block.name);
        }
        block.bindings = found->second;
        bool const isPrediction = block.name.rfind("mtp.", 0) == 0;
        (isPrediction ? mPredictionBlocks : mBlocks).push_back(std::move(block));
    }
    for (auto const& [kind, rows] : manifest.at("states").items())
    {
        for (auto const& row : rows)
        {
            mStates[kind].push_back(readState(row));
        }
    }
    for (auto const& entry : manifest.at("engines"))
    {
        auto const text = [&](char const* name) { return entry.at(name).get<std::string>(); };
        Json const& library = entry.at("plugin_library");
        mEngines.push_back({text("backend"), text("backend_version"), text("target"), text("kind"), text("dtype"),
            mDirectory / text("file"),
            library.is_null() ? std::nullopt : std::optional(library.get<std::string>()), entry.at("profiles")});
    }
    Json const& model = manifest.at("model");
    mMaxSeqLen = manifest.at("max_seq_len").get<int64_t>();
    mDtype = manifest.at("checkpoint").at("dtype").get<std::string>();
    mVocabSize = model.at("vocab_size").get<int64_t>();
    mHiddenSize = model.at("hidden_size").get<int64_t>();
    mRotaryWidth = model.at("rotary_width").get<int64_t>();
    mIndexTopk = model.at("index_topk").get<int64_t>();
    mEosTokenIds = model.at("eos_token_ids").get<std::vector<int64_t>>();
}

std::vector<StateSpec> const& Bundle::states(std::string const& kind) const
{
    static std::vector<StateSpec> const kNone;
    auto const found = mStates.find(kind);
    return found == mStates.end() ? kNone : found->second;
}

std::optional<std::filesystem::path> Bundle::pluginLibrary() const
{
    auto const path = mDirectory / kPluginLibrary;
    std::error_code error;
    return std::filesystem::is_regular_file(path, error) ? std::optional(path) : std::nullopt;
}

} // namespace glm_trt
