// When a sequence ends, as engines/python/stopping.py and session.py.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace glm_trt
{

//! Watches text that comes piece by piece for any of `stops`. Text that may begin a stop string is held back until it is
//! known not to; a stop string itself is never given. Throws Error if one is empty.
class StopStrings
{
public:
    explicit StopStrings(std::vector<std::string> stops);

    //! The text that is sure to be wanted; found() from the first stop string on.
    std::string feed(std::string_view piece);
    //! What is held back, when no more text comes.
    std::string rest();
    bool found() const
    {
        return mFound;
    }

private:
    std::vector<std::string> mStops;
    std::string mHeld;
    bool mFound{false};
};

enum class Finish
{
    kNone,
    kStop,   // an end token
    kLength, // as many tokens as were wanted, or as there is room for
    kCancelled
};

//! "stop", "length", "cancelled"; "" for kNone.
char const* nameOf(Finish finish);

//! What becomes of a sequence with its `count`-th new token. room: whether its states have room for another one.
Finish finishOf(int64_t token, int64_t count, int64_t maxNewTokens, bool room, std::vector<int64_t> const& endTokens);

} // namespace glm_trt
