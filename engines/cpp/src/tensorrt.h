// TensorRT's engines; its library is opened at run time.
#pragma once

#include "bundle.h"
#include "device.h"
#include "engine.h"
#include "memory_use.h"

#include <memory>
#include <string>

namespace glm_trt
{

//! TensorRT's library and its runtime with the plugins that are loaded into it.
struct TensorRt;

//! "tensorrt" or "tensorrt-rtx": the one whose headers this was built with.
std::string defaultTensorRt();

//! Throws MissingCapabilityError where the library is missing or of another version than the headers that this was
//! built with.
std::shared_ptr<TensorRt> openTensorRt(std::string const& backend);

//! An engine a kind, of the bundle's for `device` in `dtype`; made and destroyed while the device is current.
//! Throws BundleError where an engine is not in the bundle or cannot be loaded.
Engines loadTensorRtEngines(std::shared_ptr<TensorRt> const& tensorRt, Bundle const& bundle,
    std::string const& backend, std::string const& dtype, Device& device);

} // namespace glm_trt
