#include "sampling.h"

#include "glm_trt/errors.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <sstream>
#include <string>

namespace glm_trt
{
namespace
{

void expect(bool good, char const* name, char const* expected, double found)
{
    if (!good)
    {
        std::ostringstream text;
        text << name << ": expected " << expected << ", found " << found;
        throw Error(text.str());
    }
}

//! By falling x, then by rising ID.
class Better
{
public:
    explicit Better(std::vector<double> const& x)
        : mX(x)
    {
    }
    bool operator()(int64_t a, int64_t b) const
    {
        return mX[a] != mX[b] ? mX[a] > mX[b] : a < b;
    }

private:
    std::vector<double> const& mX;
};

//! The first of `ids` by falling x, before which less than topP of their mass lies.
void keepNucleus(std::vector<double> const& x, std::vector<int64_t>& ids, double topP)
{
    std::sort(ids.begin(), ids.end(), Better(x));
    double const best = x[ids[0]];
    double total = 0;
    for (int64_t const id : ids)
    {
        total += std::exp(x[id] - best);
    }
    double before = 0;
    size_t kept = 0;
    while (kept < ids.size() && before < topP)
    {
        before += std::exp(x[ids[kept]] - best) / total;
        ++kept;
    }
    ids.resize(kept);
}

//! The IDs that top-k, top-p and min-p leave.
std::vector<int64_t> candidates(std::vector<double> const& x, Sampling const& sampling)
{
    std::vector<int64_t> ids(x.size());
    std::iota(ids.begin(), ids.end(), 0);
    double const best = *std::max_element(x.begin(), x.end());
    auto const topK = static_cast<size_t>(sampling.topK);
    if (topK > 0 && topK < ids.size())
    {
        std::nth_element(ids.begin(), ids.begin() + sampling.topK, ids.end(), Better(x));
        ids.resize(topK);
    }
    if (sampling.topP < 1)
    {
        keepNucleus(x, ids, sampling.topP);
    }
    if (sampling.minP > 0)
    {
        auto const isLess = [&](int64_t id) { return std::exp(x[id] - best) < sampling.minP; };
        ids.erase(std::remove_if(ids.begin(), ids.end(), isLess), ids.end());
    }
    return ids;
}

//! -log(-log u), u in the middle of one of 2^52 parts of 0 ... 1.
double gumbel(uint64_t seed, int64_t position, int64_t id)
{
    uint64_t const key[2]{seed, 0};
    uint64_t const counter[4]{static_cast<uint64_t>(id) / 4 + 1, static_cast<uint64_t>(position), 0, 0};
    uint64_t block[4];
    philox(key, counter, block);
    double const uniform = (static_cast<double>(block[id % 4] >> 12) + 0.5) * 0x1p-52;
    return -std::log(-std::log(uniform));
}

void checkLogits(float const* logits, int64_t vocab)
{
    for (int64_t i = 0; i < vocab; ++i)
    {
        if (std::isnan(logits[i]))
        {
            throw Error("logits: expected finite numbers or -inf, found NaN at token " + std::to_string(i));
        }
    }
}

} // namespace

void Sampling::check() const
{
    expect(temperature >= 0 && std::isfinite(temperature), "temperature", "0 or more", temperature);
    expect(topK >= 0, "top_k", "0 (all) or more", static_cast<double>(topK));
    expect(topP > 0 && topP <= 1, "top_p", "above 0, at most 1", topP);
    expect(minP >= 0 && minP <= 1, "min_p", "0 … 1", minP);
    expect(repetitionPenalty > 0 && std::isfinite(repetitionPenalty), "repetition_penalty", "above 0",
        repetitionPenalty);
}

void philox(uint64_t const key[2], uint64_t const counter[4], uint64_t out[4])
{
    __extension__ using Wide = unsigned __int128;
    uint64_t k0 = key[0];
    uint64_t k1 = key[1];
    std::copy(counter, counter + 4, out);
    for (int round = 0; round < 10; ++round)
    {
        Wide const a = static_cast<Wide>(0xD2E7470EE14C6C93) * out[0];
        Wide const b = static_cast<Wide>(0xCA5A826395121157) * out[2];
        uint64_t const next[4]{static_cast<uint64_t>(b >> 64) ^ out[1] ^ k0, static_cast<uint64_t>(b),
            static_cast<uint64_t>(a >> 64) ^ out[3] ^ k1, static_cast<uint64_t>(a)};
        std::copy(next, next + 4, out);
        k0 += 0x9E3779B97F4A7C15;
        k1 += 0xBB67AE8584CAA73B;
    }
}

int64_t choose(float const* logits, int64_t vocab, Sampling const& sampling, int64_t position,
    std::vector<int64_t> const& occurred)
{
    checkLogits(logits, vocab);
    std::vector<double> x(logits, logits + vocab);
    if (sampling.repetitionPenalty != 1)
    {
        for (int64_t const id : occurred)
        {
            double const value = logits[id]; // so that one that occurs twice is changed once
            x[id] = value < 0 ? value * sampling.repetitionPenalty : value / sampling.repetitionPenalty;
        }
    }
    if (sampling.temperature == 0)
    {
        return std::max_element(x.begin(), x.end()) - x.begin();
    }
    for (double& value : x)
    {
        value /= sampling.temperature;
    }
    int64_t chosen = -1;
    double most = 0;
    for (int64_t const id : candidates(x, sampling))
    {
        double const drawn = x[id] + gumbel(sampling.seed, position, id);
        if (chosen < 0 || drawn > most || (drawn == most && id < chosen))
        {
            chosen = id;
            most = drawn;
        }
    }
    return chosen;
}

std::pair<double, std::vector<std::pair<int64_t, double>>> logProbabilities(
    float const* logits, int64_t vocab, int64_t chosen, int64_t count)
{
    std::vector<double> x(logits, logits + vocab);
    double const best = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (double const value : x)
    {
        sum += std::exp(value - best);
    }
    double const normaliser = best + std::log(sum);
    std::vector<int64_t> ids(x.size());
    std::iota(ids.begin(), ids.end(), 0);
    count = std::min(count, vocab);
    std::partial_sort(ids.begin(), ids.begin() + count, ids.end(), Better(x));
    std::vector<std::pair<int64_t, double>> top;
    for (int64_t i = 0; i < count; ++i)
    {
        top.emplace_back(ids[i], x[ids[i]] - normaliser);
    }
    return {x[chosen] - normaliser, std::move(top)};
}

} // namespace glm_trt
