#include "json.h"

#include <cmath>
#include <limits>
#include <optional>
#include <unordered_set>
#include <vector>

namespace glm_trt
{
namespace
{

//! Builds the value from the parser's events. nlohmann's own builder takes repeated names and
//! makes floats of integers that are too large.
class Builder : public nlohmann::json_sax<Json>
{
public:
    Json take()
    {
        return std::move(mRoot);
    }

    bool null() override
    {
        return add(nullptr);
    }
    bool boolean(bool value) override
    {
        return add(value);
    }
    bool number_integer(number_integer_t value) override
    {
        return add(value);
    }
    bool number_unsigned(number_unsigned_t value) override
    {
        if (value > static_cast<number_unsigned_t>(std::numeric_limits<int64_t>::max()))
        {
            return false;
        }
        return add(static_cast<int64_t>(value));
    }
    bool number_float(number_float_t value, string_t const& digits) override
    {
        bool const isInteger = digits.find_first_of(".eE") == string_t::npos;
        return !isInteger && std::isfinite(value) && add(value);
    }
    bool string(string_t& value) override
    {
        return add(std::move(value));
    }
    bool binary(binary_t&) override
    {
        return false;
    }
    bool start_object(size_t) override
    {
        return open(Json::object());
    }
    bool key(string_t& name) override
    {
        Level& level = mLevels.back();
        if (!level.names.insert(name).second && !level.repeated)
        {
            level.repeated = name;
        }
        level.name = std::move(name);
        return true;
    }
    bool end_object() override
    {
        if (mLevels.back().repeated)
        {
            throw RepeatedName(*mLevels.back().repeated);
        }
        mLevels.pop_back();
        return true;
    }
    bool start_array(size_t) override
    {
        return open(Json::array());
    }
    bool end_array() override
    {
        mLevels.pop_back();
        return true;
    }
    bool parse_error(size_t, std::string const&, nlohmann::detail::exception const&) override
    {
        return false;
    }

private:
    struct Level
    {
        Json* value;
        string_t name;                          // of the member that comes next
        std::unordered_set<string_t> names;     // so far
        std::optional<string_t> repeated;       // the first that came twice
    };

    Json* place(Json&& value)
    {
        if (mLevels.empty())
        {
            mRoot = std::move(value);
            return &mRoot;
        }
        Level& level = mLevels.back();
        if (level.value->is_array())
        {
            level.value->push_back(std::move(value));
            return &level.value->back();
        }
        // Not by operator[], which looks for the name among all others.
        auto& members = level.value->get_ref<Json::object_t&>();
        members.push_back({level.name, std::move(value)});
        return &members.back().second;
    }
    template <typename T>
    bool add(T&& value)
    {
        place(Json(std::forward<T>(value)));
        return true;
    }
    bool open(Json&& container)
    {
        if (mLevels.size() == kMaxDepth)
        {
            return false;
        }
        // Earlier pointers stay good: only the innermost container grows while it is open.
        Json* value = place(std::move(container));
        mLevels.push_back({value, {}, {}, {}});
        return true;
    }

    Json mRoot;
    std::vector<Level> mLevels;
};

} // namespace

Json parseJson(std::string_view text)
{
    Builder builder;
    // Which nlohmann takes for something to skip, and for the end.
    bool const hasMark = text.substr(0, 3) == "\xEF\xBB\xBF";
    bool const hasZero = text.find('\0') != std::string_view::npos;
    if (hasMark || hasZero || !Json::sax_parse(text.begin(), text.end(), &builder))
    {
        throw NotJson("not JSON");
    }
    return builder.take();
}

Json const* find(Json const& object, std::string_view name)
{
    if (!object.is_object())
    {
        return nullptr;
    }
    for (auto const& [key, value] : object.get_ref<Json::object_t const&>())
    {
        if (key == name)
        {
            return &value;
        }
    }
    return nullptr;
}

} // namespace glm_trt
