// JSON read into the structs of a generated header (bundle_format.h), by their tables of fields. What is read follows
// a schema: nothing is checked here.
#pragma once

#include "json.h"
#include "tensor.h"

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace glm_trt
{

//! Values by name, in the order of the file. (nlohmann::ordered_map cannot be assigned.)
template <typename Value>
class ByName
{
public:
    using Item = std::pair<std::string, Value>;

    auto begin() const
    {
        return mItems.begin();
    }
    auto end() const
    {
        return mItems.end();
    }
    auto find(std::string_view name) const
    {
        return std::find_if(begin(), end(), [name](Item const& item) { return item.first == name; });
    }
    size_t count(std::string_view name) const
    {
        return find(name) == end() ? 0 : 1;
    }
    //! Of a name that is not there yet. A file has none twice.
    Value& add(std::string const& name)
    {
        return mItems.emplace_back(name, Value{}).second;
    }

private:
    std::vector<Item> mItems;
};

template <typename>
constexpr bool kIsOptional = false;
template <typename Value>
constexpr bool kIsOptional<std::optional<Value>> = true;
template <typename>
constexpr bool kIsArray = false;
template <typename Value>
constexpr bool kIsArray<std::vector<Value>> = true;
template <typename>
constexpr bool kIsByName = false;
template <typename Value>
constexpr bool kIsByName<ByName<Value>> = true;

template <typename Value>
void readInto(Json const& value, Value& out)
{
    if constexpr (std::is_same_v<Value, Json>)
    {
        out = value;
    }
    else if constexpr (std::is_same_v<Value, Dtype>)
    {
        out = dtypeOf(value.get_ref<std::string const&>()).value();
    }
    else if constexpr (std::is_arithmetic_v<Value> || std::is_same_v<Value, std::string>)
    {
        out = value.get<Value>();
    }
    else if constexpr (kIsOptional<Value>)
    {
        out.reset();
        if (!value.is_null())
        {
            readInto(value, out.emplace());
        }
    }
    else if constexpr (kIsArray<Value>)
    {
        out.clear();
        for (auto const& one : value)
        {
            readInto(one, out.emplace_back());
        }
    }
    else if constexpr (kIsByName<Value>)
    {
        out = {};
        for (auto const& [name, one] : value.items())
        {
            readInto(one, out.add(name));
        }
    }
    else
    {
        eachField(out, [&value](char const* name, auto& field) { readInto(value.at(name), field); });
    }
}

//! The struct, or the container of structs, that `value` describes.
template <typename Value>
Value readAs(Json const& value)
{
    Value out;
    readInto(value, out);
    return out;
}

} // namespace glm_trt
