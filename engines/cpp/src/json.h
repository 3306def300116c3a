// JSON as both runtimes read it (model/strict_json.py): what one refuses, so does the other.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>

namespace glm_trt
{

using Json = nlohmann::ordered_json; // names in the order of the file, as Python has them

//! Text that is not JSON.
class NotJson : public std::runtime_error
{
public:
    using std::runtime_error::runtime_error;
};

//! An object that has a name twice.
class RepeatedName : public std::runtime_error
{
public:
    using std::runtime_error::runtime_error; // what() is the name
};

constexpr size_t kMaxDepth = 64;

//! The value of UTF-8 text. Throws NotJson for NaN, integers beyond int64, numbers beyond float64, text that is not
//! Unicode and more than kMaxDepth levels; RepeatedName.
Json parseJson(std::string_view text);

//! Member `name` of an object; nullptr where there is none, or no object.
Json const* find(Json const& object, std::string_view name);

} // namespace glm_trt
