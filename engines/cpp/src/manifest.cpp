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

std::string const kNoDigest(64, '0');

Json parse(std::string const& path, std::string const& data)
{
    try
    {
        return parseJson(data);
    }
    catch (RepeatedName const& error)
    {
        throw BundleError(path + ": " + error.what() + ": listed twice");
    }
    catch (NotJson const&)
    {
        throw BundleError(path + ": not JSON");
    }
}

void checkSchema(std::string const& path, Json const& value, Json const& schema, std::string const& whose)
{
    auto const failures = failuresOf(value, schema);
    if (!failures.empty())
    {
        auto const& [place, rule] = *std::min_element(failures.begin(), failures.end());
        throw BundleError(path + ": " + place + ": breaks the " + whose + " schema (" + rule + ")");
    }
}

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

Manifest readManifestValues(std::string const& path, Json const& values)
{
    checkSchema(path, values, manifestSchema(), "manifest's");
    return readAs<Manifest>(values);
}

Manifest parseManifest(std::string const& path, std::string const& data)
{
    Json const manifest = parse(path, data);
    Json const* format = find(manifest, "format");
    if (format == nullptr || *format != kFormat)
    {
        throw BundleError(path + ": not the manifest of a glm-trt bundle");
    }
    checkVersion(path, manifest);
    checkDigest(path, manifest, data);
    return readManifestValues(path, manifest);
}

Bindings parseBindings(std::string const& path, std::string const& data)
{
    Json const values = parse(path, data);
    checkSchema(path, values, bindingsSchema(), "bindings'");
    return readAs<Bindings>(values);
}

Manifest readManifest(std::filesystem::path const& bundle)
{
    auto const path = bundle / kFileName;
    std::error_code error;
    if (!std::filesystem::exists(path, error))
    {
        throw BundleError(path.string() + ": not found; " + bundle.string() + " is not a finished bundle");
    }
    return parseManifest(path.string(), FileReader(path).rest());
}

void verifyFile(std::filesystem::path const& path, int64_t bytes, std::optional<std::string> const& sha256)
{
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error))
    {
        throw BundleError(path.string() + ": missing, though the manifest lists it");
    }
    auto const size = std::filesystem::file_size(path);
    if (size != static_cast<uintmax_t>(bytes))
    {
        throw BundleError(
            path.string() + ": expected " + std::to_string(bytes) + " bytes, found " + std::to_string(size));
    }
    if (!sha256)
    {
        return; // of a shard that is too large to hash
    }
    auto const found = sha256OfFile(path);
    if (*sha256 != found)
    {
        throw BundleError(path.string() + ": altered: expected SHA-256 " + *sha256 + ", found " + found);
    }
}

} // namespace glm_trt
