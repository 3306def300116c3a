// The manifest and the bindings of a bundle, as export/bundle/read.py reads them, with its texts.
#pragma once

#include "bundle_format.h"

#include <filesystem>
#include <string>

namespace glm_trt
{

//! The manifest in `data`, checked: format, version, digest, schema. Throws BundleError that begins with `path`.
Manifest parseManifest(std::string const& path, std::string const& data);

//! Format, version and digest are not checked: what is left of parseManifest for a test.
Manifest readManifestValues(std::string const& path, Json const& values);

//! bundle/manifest.json, checked.
Manifest readManifest(std::filesystem::path const& bundle);

//! The bindings in `data` by block, checked by their schema. Throws BundleError that begins with `path`.
Bindings parseBindings(std::string const& path, std::string const& data);

//! Throws BundleError unless `path` has that size, and that SHA-256 where there is one.
void verifyFile(std::filesystem::path const& path, int64_t bytes, std::optional<std::string> const& sha256);

} // namespace glm_trt
