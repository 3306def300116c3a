#include "manifest.h"

#include "file.h"
#include "glm_trt/errors.h"
#include "schema.h"
#include "sha256.h"

#include <algorithm>

namespace glm_trt
{
namespace
{

constexpr char kFileName[] = "manifest.json";
constexpr char kFormat[] = "glm-trt bundle";
constexpr int64_t kFormatVersion = 5;
std::string const kNoDigest(64, '0');

void checkVersion(std::string const& path, Json const& manifest)
{
    Json const* version = find(manifest, "format_version");
    bool const isNumber = version != nullptr && version->is_number();
    if (!isNumber || *version != kFormatVersion)
    {
        bool const isInteger = isNumber && version->is_number_integer();
        throw BundleError(path + ": format version: expected " + std::to_string(kFormatVersion) + ", found "
            + (isInteger ? version->dump() : "no number") + "; export again");
    }
}

//! The digest is that of the bytes with itself as zeros.
void checkDigest(std::string const& path, Json const& manifest, std::string data)
{
    Json const* digest = find(manifest, "sha256");
    if (digest != nullptr && digest->is_string())
    {
        auto const& found = digest->get_ref<std::string const&>();
        size_t const place = data.find(found);
        if (place != std::string::npos)
        {
            data.replace(place, found.size(), kNoDigest);
        }
        Sha256 sum;
        sum.update(data.data(), data.size());
        if (sum.hex() == found)
        {
            return;
        }
    }
    throw BundleError(path + ": altered: its SHA-256 is not the one that it says");
}

} // namespace

void checkManifestSchema(std::string const& path, Json const& manifest)
{
    auto const failures = failuresOf(manifest, manifestSchema());
    if (!failures.empty())
    {
        auto const& [place, rule] = *std::min_element(failures.begin(), failures.end());
        throw BundleError(path + ": " + place + ": breaks the manifest's schema (" + rule + ")");
    }
}

Json parseManifest(std::string const& path, std::string const& data)
{
    Json manifest;
    try
    {
        manifest = parseJson(data);
    }
    catch (RepeatedName const& error)
    {
        throw BundleError(path + ": " + error.what() + ": listed twice");
    }
    catch (NotJson const&)
    {
        throw BundleError(path + ": not JSON");
    }
    Json const* format = find(manifest, "format");
    if (format == nullptr || *format != kFormat)
    {
        throw BundleError(path + ": not the manifest of a glm-trt bundle");
    }
    checkVersion(path, manifest);
    checkDigest(path, manifest, data);
    checkManifestSchema(path, manifest);
    return manifest;
}

Json readManifest(std::filesystem::path const& bundle)
{
    auto const path = bundle / kFileName;
    std::error_code error;
    if (!std::filesystem::exists(path, error))
    {
        throw BundleError(path.string() + ": not found; " + bundle.string() + " is not a finished bundle");
    }
    return parseManifest(path.string(), FileReader(path).rest());
}

void verifyFile(std::filesystem::path const& path, Json const& entry)
{
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error))
    {
        throw BundleError(path.string() + ": missing, though the manifest lists it");
    }
    auto const size = std::filesystem::file_size(path);
    auto const expected = entry.at("bytes").get<uintmax_t>();
    if (size != expected)
    {
        throw BundleError(
            path.string() + ": expected " + std::to_string(expected) + " bytes, found " + std::to_string(size));
    }
    Json const& digest = entry.at("sha256");
    if (digest.is_null())
    {
        return; // of a shard that is too large to hash
    }
    auto const found = sha256OfFile(path);
    if (digest != found)
    {
        throw BundleError(path.string() + ": altered: expected SHA-256 " + digest.get<std::string>() + ", found "
            + found);
    }
}

} // namespace glm_trt
