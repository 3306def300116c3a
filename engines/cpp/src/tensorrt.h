// TensorRT's engines; its library is opened at run time.
#pragma once

#include "bundle.h"
#include "device.h"
#include "engine.h"

#include <map>
#include <memory>
#include <string>

namespace glm_trt
{

//! An engine a kind, of the bundle's for `device` in `dtype`.
//! Throws MissingCapabilityError where the library is missing or of another version than the headers that this was
//! built with, BundleError where an engine is not in the bundle or cannot be loaded.
std::map<std::string, std::shared_ptr<Engine>> loadTensorRtEngines(
    Bundle const& bundle, std::string const& backend, std::string const& dtype, Device& device);

} // namespace glm_trt
