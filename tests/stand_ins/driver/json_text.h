// JSON as the stand-in's own files have it: read whole, and written piece by piece.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace stand_in
{

struct JsonValue
{
    std::string text; //!< of a string, without its quotes; of anything else that is no list and no object, as it stands
    std::vector<JsonValue> items;
    std::vector<std::pair<std::string, JsonValue>> members;

    //! Member `name`, or nullptr.
    JsonValue const* find(std::string const& name) const;
};

//! Aborts the process, with what was found, if it is not JSON.
JsonValue readJson(std::string const& text);

std::string quoted(std::string const& text);

} // namespace stand_in
