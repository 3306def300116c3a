// What manifest and bindings refer to is listed: as export/bundle/references.py, with its texts.
#pragma once

#include "bundle_format.h"
#include "safetensors.h"

#include <string>

namespace glm_trt
{

//! Throws BundleError, which begins with `path`, unless every file that the manifest names is among its files, and the
//! plugin library is the one that its engines were built with.
void checkListed(std::string const& path, Manifest const& manifest);

//! Throws BundleError, which begins with `path`, unless there are bindings of the manifest's blocks, of each and of no
//! other, and every tensor that they read is in a listed file of weights.
void checkBindings(
    std::string const& path, Manifest const& manifest, Bindings const& bindings, TensorFiles const& weights);

} // namespace glm_trt
