// The states of a bundle's pools are what its engines take.
#pragma once

#include "bundle.h"
#include "engine.h"

#include <map>
#include <memory>
#include <string>

namespace glm_trt
{

//! Throws BundleError unless the engine of every kind has each state of the kind as an input and an output, of its
//! shape and dtype for one sequence. dtype: of the blocks.
void requireStates(
    Bundle const& bundle, std::map<std::string, std::shared_ptr<Engine>> const& engines, Dtype dtype);

} // namespace glm_trt
