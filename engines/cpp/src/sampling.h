// Choosing a token from logits, number by number as engines/python/sampling.py.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace glm_trt
{

//! How a token is drawn. The defaults are greedy.
struct Sampling
{
    double temperature{0.0};       // 0 takes the best, ties to the smaller ID
    int64_t topK{0};               // only the k best, 0 for all
    double topP{1.0};              // only the fewest of the best with this mass
    double minP{0.0};              // only those this times as probable as the best, or more
    double repetitionPenalty{1.0}; // of tokens that have occurred
    uint64_t seed{0};

    //! Throws Error if a value is out of range.
    void check() const;
};

//! One token for the place `position` of a sequence.
//! logits: [vocab]; occurred: the IDs of the sequence so far. Throws Error if a logit is NaN.
int64_t choose(float const* logits, int64_t vocab, Sampling const& sampling, int64_t position,
    std::vector<int64_t> const& occurred);

//! The logarithm of the model's own probability of `chosen`, and the `count` most probable tokens with theirs.
std::pair<double, std::vector<std::pair<int64_t, double>>> logProbabilities(
    float const* logits, int64_t vocab, int64_t chosen, int64_t count);

//! Philox4x64-10 (Salmon et al. 2011): the block of a key and counter.
void philox(uint64_t const key[2], uint64_t const counter[4], uint64_t out[4]);

} // namespace glm_trt
