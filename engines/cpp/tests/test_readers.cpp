// SHA-256, JSON and the schema's rules; what needs files is compared with Python in tests/engines/cpp.
#include "check.h"
#include "glm_trt/errors.h"
#include "json.h"
#include "safetensors.h"
#include "schema.h"
#include "sha256.h"

using namespace glm_trt;
using namespace glm_trt::test;

namespace
{

std::string sha256(std::string const& text, size_t piece)
{
    Sha256 digest;
    for (size_t i = 0; i < text.size(); i += piece)
    {
        digest.update(text.data() + i, std::min(piece, text.size() - i));
    }
    return digest.hex();
}

void testSha256()
{
    // FIPS 180-4's examples.
    CHECK(sha256("", 1) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(sha256("abc", 1) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    std::string const long2 = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    CHECK(sha256(long2, 7) == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    for (size_t const piece : {1000, 64, 65, 3})
    {
        CHECK(sha256(std::string(1000000, 'a'), piece)
            == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }
}

bool isJson(std::string const& text)
{
    return thrownBy<NotJson>([&] { parseJson(text); }).empty();
}

void testJson()
{
    CHECK(parseJson(R"({"b": [1, 2.5, null, true, "\u00e9"], "a": {}})").dump()
        == "{\"b\":[1,2.5,null,true,\"\xC3\xA9\"],\"a\":{}}");
    for (char const* text : {"9223372036854775807", "-9223372036854775808", "1e308", " [1] "})
    {
        CHECK(isJson(text));
    }
    for (char const* text : {"", "NaN", "Infinity", "9223372036854775808", "-9223372036854775809", "1e309",
             "123456789012345678901234567890", "[1,]", "01", "\"\\ud800\"", "\"\xFF\"", "\xEF\xBB\xBF[]", "{\"a\":1",
             "[1] x", "\"a\nb\"", "'a'", "// x\n1"})
    {
        CHECK(!isJson(text));
    }
    CHECK(isJson(std::string(64, '[') + std::string(64, ']')));
    CHECK(!isJson(std::string(65, '[') + std::string(65, ']')));
    CHECK(!isJson(std::string(1000000, '[')));
    CHECK(thrownBy<RepeatedName>([] { parseJson(R"({"x": {"a": 1, "b": 2, "b": 3, "a": 4}})"); }) == "b");
}

std::string firstFailure(char const* value, char const* schema)
{
    auto failures = failuresOf(parseJson(value), parseJson(schema));
    std::sort(failures.begin(), failures.end());
    return failures.empty() ? "" : failures[0].first + " " + failures[0].second;
}

void testSchema()
{
    CHECK(firstFailure("[1, 2.0, 3]", R"({"type": "array", "items": {"type": "integer"}})").empty());
    CHECK(firstFailure("[1, 2.5]", R"({"items": {"type": "integer"}})") == "$[1] type");
    CHECK(firstFailure("[1, 2]", R"({"items": {"maximum": 1.5}})") == "$[1] maximum");
    CHECK(firstFailure("[1, 2]", R"({"maxItems": 1})") == "$ maxItems");
    CHECK(firstFailure("[1, true]", R"({"items": {"type": "integer"}})") == "$[1] type");
    CHECK(firstFailure(R"({"a b": 0})", R"({"additionalProperties": {"minimum": 1}})") == "$['a b'] minimum");
    CHECK(firstFailure(R"({"a": {"b": 1}})", R"({"properties": {"a": {"additionalProperties": false}}})")
        == "$.a additionalProperties");
    CHECK(firstFailure("{}", R"({"required": ["a"]})") == "$ required");
    CHECK(firstFailure("[1, 1]", R"({"uniqueItems": true})") == "$ uniqueItems");
    CHECK(firstFailure("\"ab\"", R"({"pattern": "^a$", "maxLength": 1})") == "$ maxLength");
    CHECK(firstFailure("null", R"({"anyOf": [{"type": "string"}, {"const": null}]})").empty());
    CHECK(firstFailure("1", R"({"anyOf": [{"type": "string"}, {"enum": [null, 2]}]})") == "$ anyOf");
    CHECK(firstFailure(R"({"": 1})", R"({"propertyNames": {"minLength": 1}})") == "$ minLength");
    CHECK(!thrownBy<std::logic_error>([] { failuresOf(Json(1), parseJson(R"({"oneOf": []})")); }).empty());
    CHECK(failuresOf(parseJson("{}"), manifestSchema()).size() > 10);
}

void testSafetensorsOverflow()
{
    // Products and offsets near 2^63 and 2^64.
    for (char const* shape : {"[9223372036854775807, 2]", "[4294967296, 4294967296]", "[3037000500, 3037000500, 2]"})
    {
        std::string const header = R"({"a": {"dtype": "F32", "shape": )" + std::string(shape)
            + R"(, "data_offsets": [0, 9223372036854775807]}})";
        auto const text = thrownBy<CheckpointError>([&] { parseSafetensorsHeader("f", header, 8 + header.size()); });
        CHECK(text.find("more bytes than a file can have") != std::string::npos);
    }
    std::string const empty
        = R"({"a": {"dtype": "F32", "shape": [9223372036854775807, 0, 9223372036854775807], "data_offsets": [0, 0]}})";
    CHECK(parseSafetensorsHeader("f", empty, 8 + empty.size()).at("a").bytes == 0);
    std::string const far = R"({"a": {"dtype": "U8", "shape": [9223372036854775807],)"
                            R"( "data_offsets": [0, 9223372036854775807]}})";
    auto const text = thrownBy<CheckpointError>([&] { parseSafetensorsHeader("f", far, 8 + far.size()); });
    CHECK(text.find("file truncated") != std::string::npos);
}

} // namespace

int main()
{
    testSha256();
    testJson();
    testSchema();
    testSafetensorsOverflow();
    return checksFailed();
}
