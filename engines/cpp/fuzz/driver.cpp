// Runs a fuzzer without libFuzzer: cases made of its seeds by a generator with a fixed seed, so that a failure can be
// run again.
//
//     fuzz_NAME CASES [FIRST]
#include "fuzz_target.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>

namespace
{

using Random = std::mt19937_64;

size_t below(Random& random, size_t bound)
{
    return bound ? random() % bound : 0;
}

//! What breaks parsers: numbers at limits, halves of characters, structure in wrong places.
std::vector<std::string> const kTokens{"0", "-1", "1.5", "1e999", "9223372036854775807", "9223372036854775808",
    "18446744073709551615", "99999999999999999999999", "-0", "null", "true", "NaN", "[]", "{}", "\"\"", "[[[[", "}}",
    "\"\\ud800\"", "\\u0000", "\xFF", "\xEF\xBB\xBF", ",", ":", "\"shape\"", "\"data_offsets\"", "\"F64\"", "\"..\"",
    "\"/x\"", "4294967296"};

bool isDigit(char c)
{
    return c >= '0' && c <= '9';
}

void mutate(std::string& text, Random& random)
{
    size_t const place = below(random, text.size() + 1);
    size_t const length = std::min(text.size() - place, 1 + below(random, 16));
    switch (below(random, 8))
    {
    case 0: // a bit
        if (place < text.size())
        {
            text[place] = static_cast<char>(text[place] ^ 1 << below(random, 8));
        }
        break;
    case 1: text.erase(place, length); break;
    case 2: text.insert(place, text.substr(below(random, text.size()), 1 + below(random, 64))); break;
    case 3: text.resize(place); break;
    case 4: text.insert(place, kTokens[below(random, kTokens.size())]); break;
    case 5: // another number
    {
        auto const digit = std::find_if(text.begin() + static_cast<long>(place), text.end(), isDigit);
        auto const end = std::find_if_not(digit, text.end(), isDigit);
        if (digit != end)
        {
            text.replace(digit, end, kTokens[below(random, 9)]);
        }
        break;
    }
    case 6: // a value gone, or another one in its place
    {
        size_t const colon = text.find(':', place);
        size_t const comma = colon == std::string::npos ? colon : text.find_first_of(",}", colon);
        if (comma != std::string::npos)
        {
            text.replace(colon + 1, comma - colon - 1, kTokens[below(random, kTokens.size())]);
        }
        break;
    }
    default: // two names or values change places
    {
        size_t const other = below(random, text.size() + 1);
        size_t const count = std::min({length, text.size() - other, text.size() - place});
        if (other + count <= place || place + count <= other)
        {
            std::swap_ranges(text.begin() + static_cast<long>(place), text.begin() + static_cast<long>(place + count),
                text.begin() + static_cast<long>(other));
        }
    }
    }
}

} // namespace

int main(int count, char** arguments)
{
    size_t const cases = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 100000;
    size_t const first = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 0;
    auto const seeds = fuzzSeeds();
    size_t accepted = 0;
    for (auto const& seed : seeds)
    {
        LLVMFuzzerTestOneInput(reinterpret_cast<uint8_t const*>(seed.data()), seed.size());
        if (!wasAccepted())
        {
            std::fprintf(stderr, "a seed is refused: the cases would test nothing\n");
            return 1;
        }
    }
    auto const began = std::chrono::steady_clock::now();
    for (size_t number = first; number < first + cases; ++number)
    {
        Random random(number);
        std::string text = seeds[number % seeds.size()];
        for (size_t mutations = 1 + below(random, 4); mutations > 0; --mutations)
        {
            mutate(text, random);
        }
        LLVMFuzzerTestOneInput(reinterpret_cast<uint8_t const*>(text.data()), text.size());
        accepted += wasAccepted();
    }
    std::chrono::duration<double> const seconds = std::chrono::steady_clock::now() - began;
    std::printf("%zu cases in %.1f s, none crashed; %zu accepted\n", cases, seconds.count(), accepted);
    return 0;
}
