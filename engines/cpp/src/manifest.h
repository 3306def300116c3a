// The manifest of a bundle, as export/manifest.py reads it, with its texts.
#pragma once

#include "json.h"

#include <filesystem>
#include <string>

namespace glm_trt
{

//! The manifest in `data`, checked: format, version, digest, schema. Throws BundleError that begins with `path`.
Json parseManifest(std::string const& path, std::string const& data);

//! Format, version and digest are not checked: what is left of parseManifest for a test.
void checkManifestSchema(std::string const& path, Json const& manifest);

//! bundle/manifest.json, checked.
Json readManifest(std::filesystem::path const& bundle);

//! Throws BundleError unless `path` has the size and SHA-256 (where one is listed) of a manifest's entry.
void verifyFile(std::filesystem::path const& path, Json const& entry);

} // namespace glm_trt
