#include "stopping.h"

#include "glm_trt/errors.h"

#include <algorithm>
#include <utility>

namespace glm_trt
{
namespace
{

//! How long an end of `text` begins `stop`.
size_t overlap(std::string_view text, std::string_view stop)
{
    for (size_t n = std::min(text.size(), stop.size() - 1); n > 0; --n)
    {
        if (text.substr(text.size() - n) == stop.substr(0, n))
        {
            return n;
        }
    }
    return 0;
}

} // namespace

StopStrings::StopStrings(std::vector<std::string> stops)
    : mStops(std::move(stops))
{
    for (auto const& stop : mStops)
    {
        if (stop.empty())
        {
            throw Error("stop: expected strings that are not empty");
        }
    }
}

std::string StopStrings::feed(std::string_view piece)
{
    if (mFound)
    {
        return "";
    }
    std::string text = mHeld + std::string(piece);
    size_t first = std::string::npos;
    size_t held = 0;
    for (auto const& stop : mStops)
    {
        first = std::min(first, text.find(stop));
        held = std::max(held, overlap(text, stop));
    }
    mFound = first != std::string::npos;
    size_t const given = mFound ? first : text.size() - held;
    mHeld = mFound ? "" : text.substr(given);
    text.resize(given);
    return text;
}

std::string StopStrings::rest()
{
    return std::exchange(mHeld, "");
}

char const* nameOf(Finish finish)
{
    switch (finish)
    {
    case Finish::kStop: return "stop";
    case Finish::kLength: return "length";
    case Finish::kCancelled: return "cancelled";
    case Finish::kNone: break;
    }
    return "";
}

Finish finishOf(int64_t token, int64_t count, int64_t maxNewTokens, bool room, std::vector<int64_t> const& endTokens)
{
    if (std::find(endTokens.begin(), endTokens.end(), token) != endTokens.end())
    {
        return Finish::kStop;
    }
    return !room || count >= maxNewTokens ? Finish::kLength : Finish::kNone;
}

} // namespace glm_trt
