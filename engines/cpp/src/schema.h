// The part of JSON Schema that the bundle's schemas use. By hand: the wheel that brings the JSON parser has no
// validator, and no other wheel has one for it.
#pragma once

#include "json.h"

#include <string>
#include <utility>
#include <vector>

namespace glm_trt
{

//! A rule that a value breaks: where ("$.blocks[0]"), and its name ("required").
using Failure = std::pair<std::string, std::string>;

//! Every rule of `schema` that `value` breaks. Throws std::logic_error for a rule that this does not know.
std::vector<Failure> failuresOf(Json const& value, Json const& schema);

//! The schemas of bundles' manifests and bindings, export/bundle/*.schema.json, which are compiled in.
Json const& manifestSchema();
Json const& bindingsSchema();

} // namespace glm_trt
