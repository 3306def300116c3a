#include "schema.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <mutex>
#include <regex>
#include <stdexcept>

namespace glm_trt
{

// Made of the files when this is built.
extern char const* const kManifestSchema;
extern char const* const kBindingsSchema;

namespace
{

// std::regex takes a level of the stack for each character. What is longer breaks `maxLength`, which every string
// with a pattern has, and which sorts before `pattern`.
constexpr size_t kMaxMatched = 1024;

size_t codePoints(std::string const& text)
{
    return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

bool isInteger(Json const& value)
{
    return value.is_number_integer()
        || (value.is_number_float() && std::floor(value.get<double>()) == value.get<double>());
}

bool hasType(Json const& value, std::string const& type)
{
    static std::map<std::string, bool (*)(Json const&)> const kTypes{
        {"object", [](Json const& v) { return v.is_object(); }},
        {"array", [](Json const& v) { return v.is_array(); }},
        {"string", [](Json const& v) { return v.is_string(); }},
        {"boolean", [](Json const& v) { return v.is_boolean(); }},
        {"null", [](Json const& v) { return v.is_null(); }},
        {"number", [](Json const& v) { return v.is_number(); }},
        {"integer", isInteger},
    };
    return kTypes.at(type)(value);
}

bool matches(std::string const& text, std::string const& pattern)
{
    if (text.size() > kMaxMatched)
    {
        return true;
    }
    // Compiled once for all threads; a regex that nobody changes may be used by several.
    static std::mutex mutex;
    static std::map<std::string, std::regex> compiled;
    std::regex const* expression = nullptr;
    {
        std::lock_guard<std::mutex> const lock(mutex);
        expression = &compiled.try_emplace(pattern, pattern).first->second;
    }
    return std::regex_search(text, *expression);
}

std::string below(std::string const& path, std::string const& name)
{
    bool const isPlain = !name.empty() && std::isalpha(static_cast<unsigned char>(name[0]))
        && std::all_of(name.begin(), name.end(),
            [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; });
    if (isPlain)
    {
        return path + "." + name;
    }
    std::string escaped;
    for (char const c : name)
    {
        escaped += c == '\\' ? "\\\\" : c == '\'' ? "\\'" : std::string(1, c);
    }
    return path + "['" + escaped + "']";
}

class Checker
{
public:
    explicit Checker(Json const& root)
        : mRoot(root)
    {
    }

    void check(Json const& value, Json const& schema, std::string const& path)
    {
        if (schema.is_boolean())
        {
            return; // of the parent: only `additionalProperties: false` is used, and read there
        }
        for (auto const& [rule, wanted] : schema.items())
        {
            check(value, schema, path, rule, wanted);
        }
    }
    std::vector<Failure> take()
    {
        return std::move(mFailures);
    }

private:
    void expect(bool good, std::string const& path, std::string const& rule)
    {
        if (!good)
        {
            mFailures.emplace_back(path, rule);
        }
    }

    bool passes(Json const& value, Json const& schema)
    {
        Checker other(mRoot);
        other.check(value, schema, "");
        return other.mFailures.empty();
    }

    void check(Json const& value, Json const& schema, std::string const& path, std::string const& rule,
        Json const& wanted)
    {
        static std::vector<std::string> const kSilent{"$schema", "$defs", "title", "description"};
        if (std::find(kSilent.begin(), kSilent.end(), rule) != kSilent.end())
        {
            return;
        }
        if (rule == "$ref")
        {
            check(value, mRoot.at("$defs").at(wanted.get<std::string>().substr(8)), path);
        }
        else if (rule == "type")
        {
            expect(hasType(value, wanted.get<std::string>()), path, rule);
        }
        else if (rule == "const")
        {
            expect(value == wanted, path, rule);
        }
        else if (rule == "enum")
        {
            expect(std::find(wanted.begin(), wanted.end(), value) != wanted.end(), path, rule);
        }
        else if (rule == "anyOf")
        {
            bool const any
                = std::any_of(wanted.begin(), wanted.end(), [&](Json const& one) { return passes(value, one); });
            expect(any, path, rule);
        }
        else if (rule == "minimum")
        {
            expect(!value.is_number() || value >= wanted, path, rule);
        }
        else if (rule == "maximum")
        {
            expect(!value.is_number() || value <= wanted, path, rule);
        }
        else if (value.is_string())
        {
            checkString(value.get_ref<std::string const&>(), path, rule, wanted);
        }
        else if (value.is_array())
        {
            checkArray(value, path, rule, wanted);
        }
        else if (value.is_object())
        {
            checkObject(value, schema, path, rule, wanted);
        }
    }

    void checkString(std::string const& text, std::string const& path, std::string const& rule, Json const& wanted)
    {
        if (rule == "minLength")
        {
            expect(codePoints(text) >= wanted.get<size_t>(), path, rule);
        }
        else if (rule == "maxLength")
        {
            expect(codePoints(text) <= wanted.get<size_t>(), path, rule);
        }
        else if (rule == "pattern")
        {
            expect(matches(text, wanted.get<std::string>()), path, rule);
        }
    }

    void checkArray(Json const& value, std::string const& path, std::string const& rule, Json const& wanted)
    {
        if (rule == "items")
        {
            for (size_t i = 0; i < value.size(); ++i)
            {
                check(value[i], wanted, path + "[" + std::to_string(i) + "]");
            }
        }
        else if (rule == "minItems")
        {
            expect(value.size() >= wanted.get<size_t>(), path, rule);
        }
        else if (rule == "maxItems")
        {
            expect(value.size() <= wanted.get<size_t>(), path, rule);
        }
        else if (rule == "uniqueItems")
        {
            bool unique = true;
            for (size_t i = 1; i < value.size(); ++i)
            {
                unique = unique && std::find(value.begin(), value.begin() + i, value[i]) == value.begin() + i;
            }
            expect(unique, path, rule);
        }
    }

    void checkObject(
        Json const& value, Json const& schema, std::string const& path, std::string const& rule, Json const& wanted)
    {
        if (rule == "required")
        {
            for (auto const& name : wanted)
            {
                expect(find(value, name.get<std::string>()) != nullptr, path, rule);
            }
        }
        else if (rule == "properties")
        {
            for (auto const& [name, one] : wanted.items())
            {
                if (Json const* member = find(value, name))
                {
                    check(*member, one, below(path, name));
                }
            }
        }
        else if (rule == "propertyNames")
        {
            for (auto const& [name, member] : value.items())
            {
                check(Json(name), wanted, path);
            }
        }
        else if (rule == "additionalProperties")
        {
            Json const* known = find(schema, "properties");
            for (auto const& [name, member] : value.items())
            {
                if (known != nullptr && find(*known, name) != nullptr)
                {
                    continue;
                }
                if (wanted.is_boolean())
                {
                    expect(wanted.get<bool>(), path, rule);
                }
                else
                {
                    check(member, wanted, below(path, name));
                }
            }
        }
    }

    Json const& mRoot;
    std::vector<Failure> mFailures;
};

//! Throws for a rule that `Checker` would pass over.
void checkRules(Json const& schema)
{
    static std::vector<std::string> const kKnown{"$schema", "$defs", "title", "description", "$ref", "type", "const",
        "enum", "anyOf", "minimum", "maximum", "minLength", "maxLength", "pattern", "items", "minItems", "maxItems",
        "uniqueItems", "required", "properties", "propertyNames", "additionalProperties"};
    for (auto const& [rule, wanted] : schema.items())
    {
        if (std::find(kKnown.begin(), kKnown.end(), rule) == kKnown.end())
        {
            throw std::logic_error("schema: unknown rule " + rule);
        }
        bool const isNamed = rule == "properties" || rule == "$defs";
        if (isNamed || rule == "anyOf")
        {
            for (auto const& one : wanted)
            {
                checkRules(one);
            }
        }
        else if ((rule == "items" || rule == "propertyNames" || rule == "additionalProperties") && wanted.is_object())
        {
            checkRules(wanted);
        }
    }
}

} // namespace

std::vector<Failure> failuresOf(Json const& value, Json const& schema)
{
    checkRules(schema);
    Checker checker(schema);
    checker.check(value, schema, "$");
    return checker.take();
}

Json const& manifestSchema()
{
    static Json const kSchema = parseJson(kManifestSchema);
    return kSchema;
}

Json const& bindingsSchema()
{
    static Json const kSchema = parseJson(kBindingsSchema);
    return kSchema;
}

} // namespace glm_trt
