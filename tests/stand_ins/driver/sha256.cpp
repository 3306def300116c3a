// SHA-256 (FIPS 180-4), by which kernels.json names images.
#include "image.h"

#include <cstdint>
#include <cstring>

namespace stand_in
{
namespace
{

constexpr uint32_t kConstants[64] = {0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
    0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7,
    0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c,
    0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t turned(uint32_t value, int by)
{
    return value >> by | value << (32 - by);
}

void block(uint32_t (&state)[8], unsigned char const* data)
{
    uint32_t w[64];
    for (int i = 0; i < 64; ++i)
    {
        if (i < 16)
        {
            w[i] = uint32_t{data[4 * i]} << 24 | uint32_t{data[4 * i + 1]} << 16 | uint32_t{data[4 * i + 2]} << 8
                | data[4 * i + 3];
            continue;
        }
        uint32_t const s0 = turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t const s1 = turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t v[8];
    std::memcpy(v, state, sizeof v);
    for (int i = 0; i < 64; ++i)
    {
        uint32_t const s1 = turned(v[4], 6) ^ turned(v[4], 11) ^ turned(v[4], 25);
        uint32_t const first = v[7] + s1 + ((v[4] & v[5]) ^ (~v[4] & v[6])) + kConstants[i] + w[i];
        uint32_t const s0 = turned(v[0], 2) ^ turned(v[0], 13) ^ turned(v[0], 22);
        uint32_t const second = s0 + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        std::memmove(v + 1, v, 7 * sizeof *v);
        v[4] += first;
        v[0] = first + second;
    }
    for (int i = 0; i < 8; ++i)
    {
        state[i] += v[i];
    }
}

} // namespace

std::string sha256Of(void const* data, size_t bytes)
{
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    auto const* const from = static_cast<unsigned char const*>(data);
    size_t const whole = bytes / 64 * 64;
    for (size_t i = 0; i < whole; i += 64)
    {
        block(state, from + i);
    }
    unsigned char last[128] = {};
    std::memcpy(last, from + whole, bytes - whole);
    last[bytes - whole] = 0x80;
    size_t const length = bytes - whole < 56 ? 64 : 128;
    for (size_t i = 0; i < 8; ++i)
    {
        last[length - 1 - i] = static_cast<unsigned char>(uint64_t{bytes} * 8 >> 8 * i);
    }
    for (size_t i = 0; i < length; i += 64)
    {
        block(state, last + i);
    }
    static char const kDigits[] = "0123456789abcdef";
    std::string digest;
    for (uint32_t const word : state)
    {
        for (int shift = 28; shift >= 0; shift -= 4)
        {
            digest += kDigits[word >> shift & 15];
        }
    }
    return digest;
}

} // namespace stand_in
