#include "json_text.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace stand_in
{
namespace
{

class Reader
{
public:
    explicit Reader(std::string const& text)
        : mText(text)
    {
    }

    JsonValue value()
    {
        JsonValue made;
        char const first = peek();
        if (first == '{' || first == '[')
        {
            char const last = first == '{' ? '}' : ']';
            ++mAt;
            while (peek() != last)
            {
                if (first == '{')
                {
                    std::string name = string();
                    expect(':');
                    made.members.emplace_back(std::move(name), value());
                }
                else
                {
                    made.items.push_back(value());
                }
                if (peek() != last)
                {
                    expect(',');
                }
            }
            ++mAt;
        }
        else if (first == '"')
        {
            made.text = string();
        }
        else
        {
            size_t const end = mText.find_first_of(",]} \t\r\n", mAt);
            made.text = mText.substr(mAt, end - mAt);
            mAt = end == std::string::npos ? mText.size() : end;
        }
        return made;
    }

private:
    char peek()
    {
        mAt = mText.find_first_not_of(" \t\r\n", mAt);
        if (mAt == std::string::npos)
        {
            fail("the end");
        }
        return mText[mAt];
    }

    void expect(char wanted)
    {
        if (peek() != wanted)
        {
            fail(std::string(1, mText[mAt]).c_str());
        }
        ++mAt;
    }

    std::string string()
    {
        expect('"');
        std::string made;
        while (mAt < mText.size() && mText[mAt] != '"')
        {
            if (mText[mAt] == '\\' && mAt + 1 < mText.size())
            {
                ++mAt;
                static char const kLetters[] = "nrtbf";
                static char const kMeant[] = "\n\r\t\b\f";
                char const* const found = std::strchr(kLetters, mText[mAt]);
                made += found != nullptr ? kMeant[found - kLetters] : mText[mAt];
            }
            else
            {
                made += mText[mAt];
            }
            ++mAt;
        }
        expect('"');
        return made;
    }

    [[noreturn]] void fail(char const* found) const
    {
        std::fprintf(stderr, "stand-in driver: not JSON, found %s: %.200s\n", found, mText.c_str());
        std::abort();
    }

    std::string const& mText;
    size_t mAt{0};
};

} // namespace

JsonValue const* JsonValue::find(std::string const& name) const
{
    for (auto const& [known, value] : members)
    {
        if (known == name)
        {
            return &value;
        }
    }
    return nullptr;
}

JsonValue readJson(std::string const& text)
{
    return Reader(text).value();
}

std::string quoted(std::string const& text)
{
    std::string made = "\"";
    for (char const letter : text)
    {
        if (letter == '"' || letter == '\\')
        {
            made += '\\';
            made += letter;
        }
        else if (static_cast<unsigned char>(letter) < 0x20)
        {
            char code[8];
            std::snprintf(code, sizeof code, "\\u%04x", letter);
            made += code;
        }
        else
        {
            made += letter;
        }
    }
    return made + "\"";
}

} // namespace stand_in
