// Sampling and stop rules; draws are compared with Python's in tests/engines/cpp.
#include "check.h"
#include "glm_trt/errors.h"
#include "sampling.h"
#include "stopping.h"

#include <cmath>
#include <limits>

using namespace glm_trt;
using namespace glm_trt::test;

namespace
{

void testPhilox()
{
    // Random123's known answer: key and counter 0.
    uint64_t const zeros[4]{};
    uint64_t out[4];
    philox(zeros, zeros, out);
    CHECK(out[0] == 0x16554D9ECA36314C && out[1] == 0xDB20FE9D672D0FDC);
    CHECK(out[2] == 0xD7E772CEE186176B && out[3] == 0x7E68B68AEC7BA23B);
}

void testChoose()
{
    std::vector<float> const logits{0, 2, 1, 2, 2};
    CHECK(choose(logits.data(), 5, {}, 0, {}) == 1);
    Sampling sampling;
    sampling.repetitionPenalty = 4;
    CHECK(choose(logits.data(), 5, sampling, 0, {1, 1, 4}) == 3);
    sampling.repetitionPenalty = 2;
    std::vector<float> const apart{0, 8, 3};
    CHECK(choose(apart.data(), 3, sampling, 0, {1, 1}) == 1); // once, however often it occurred
    sampling = {};
    sampling.temperature = 1;
    sampling.topK = 2;
    std::vector<int> counts(5);
    for (int position = 0; position < 2000; ++position)
    {
        ++counts[choose(logits.data(), 5, sampling, position, {})];
    }
    CHECK(counts[0] == 0 && counts[2] == 0 && counts[4] == 0);
    CHECK(std::abs(counts[1] - 1000) < 150);
    sampling = {};
    sampling.temperature = 1;
    sampling.topP = 0.5; // of four alike two
    std::vector<float> const alike(4);
    for (int position = 0; position < 200; ++position)
    {
        CHECK(choose(alike.data(), 4, sampling, position, {}) < 2);
    }
    float const infinity = std::numeric_limits<float>::infinity();
    std::vector<float> const one{-infinity, 3, -infinity};
    sampling.topP = 0.5;
    sampling.minP = 0.1;
    CHECK(choose(one.data(), 3, sampling, 7, {}) == 1);
    std::vector<float> const wrong{1, std::nanf("")};
    CHECK(thrownBy<Error>([&] { choose(wrong.data(), 2, {}, 0, {}); })
        == "logits: expected finite numbers or -inf, found NaN at token 1");
}

void testOptions()
{
    for (auto const change : std::vector<void (*)(Sampling&)>{[](Sampling& s) { s.temperature = -1; },
             [](Sampling& s) { s.temperature = std::nan(""); }, [](Sampling& s) { s.topP = 0; },
             [](Sampling& s) { s.topP = 1.5; }, [](Sampling& s) { s.minP = -1; }, [](Sampling& s) { s.topK = -1; },
             [](Sampling& s) { s.repetitionPenalty = 0; }})
    {
        Sampling sampling;
        change(sampling);
        CHECK(thrownBy<Error>([&] { sampling.check(); }).find(": expected") != std::string::npos);
    }
}

void testStops()
{
    StopStrings watch({"<|end|>", "two"});
    CHECK(watch.feed("a<") == "a" && watch.feed("|e").empty() && watch.feed("nd").empty());
    CHECK(watch.feed("x t") == "<|endx " && watch.feed("w") == "" && watch.feed("ox") == "" && watch.found());
    StopStrings other({"abab"});
    CHECK(other.feed("ab") == "" && other.feed("ac") == "abac" && other.feed("ab") == "" && other.rest() == "ab");
    CHECK(!thrownBy<Error>([] { StopStrings({""}); }).empty());
    CHECK(finishOf(7, 1, 5, true, {3, 7}) == Finish::kStop);
    CHECK(finishOf(8, 5, 5, true, {3, 7}) == Finish::kLength && finishOf(8, 1, 5, false, {}) == Finish::kLength);
    CHECK(finishOf(8, 4, 5, true, {3, 7}) == Finish::kNone);
}

} // namespace

int main()
{
    testPhilox();
    testChoose();
    testOptions();
    testStops();
    return checksFailed();
}
