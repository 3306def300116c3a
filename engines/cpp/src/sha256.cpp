#include "sha256.h"

#include "file.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace glm_trt
{
namespace
{

constexpr std::array<uint32_t, 64> kRound{0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
    0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7,
    0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c,
    0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t rotate(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

} // namespace

void Sha256::block(uint8_t const* data)
{
    std::array<uint32_t, 64> w;
    for (int i = 0; i < 16; ++i)
    {
        w[i] = static_cast<uint32_t>(data[4 * i]) << 24 | static_cast<uint32_t>(data[4 * i + 1]) << 16
            | static_cast<uint32_t>(data[4 * i + 2]) << 8 | data[4 * i + 3];
    }
    for (int i = 16; i < 64; ++i)
    {
        uint32_t const a = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t const b = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + a + w[i - 7] + b;
    }
    auto s = mState;
    for (int i = 0; i < 64; ++i)
    {
        uint32_t const sum1 = rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25);
        uint32_t const choice = (s[4] & s[5]) ^ (~s[4] & s[6]);
        uint32_t const first = s[7] + sum1 + choice + kRound[i] + w[i];
        uint32_t const sum0 = rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22);
        uint32_t const majority = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
        s = {first + sum0 + majority, s[0], s[1], s[2], s[3] + first, s[4], s[5], s[6]};
    }
    for (int i = 0; i < 8; ++i)
    {
        mState[i] += s[i];
    }
}

void Sha256::update(void const* data, size_t bytes)
{
    auto const* next = static_cast<uint8_t const*>(data);
    mBytes += bytes;
    while (bytes > 0)
    {
        if (mHeld == 0 && bytes >= mBuffer.size())
        {
            block(next);
            next += mBuffer.size();
            bytes -= mBuffer.size();
            continue;
        }
        size_t const count = std::min(bytes, mBuffer.size() - mHeld);
        std::memcpy(mBuffer.data() + mHeld, next, count);
        mHeld += count;
        next += count;
        bytes -= count;
        if (mHeld == mBuffer.size())
        {
            block(mBuffer.data());
            mHeld = 0;
        }
    }
}

std::string Sha256::hex()
{
    uint64_t const bits = mBytes * 8;
    uint8_t const one = 0x80;
    uint8_t const zero = 0;
    update(&one, 1);
    while (mHeld != 56)
    {
        update(&zero, 1);
    }
    for (int shift = 56; shift >= 0; shift -= 8)
    {
        auto const byte = static_cast<uint8_t>(bits >> shift);
        update(&byte, 1);
    }
    static constexpr char kDigits[] = "0123456789abcdef";
    std::string text;
    for (uint32_t const word : mState)
    {
        for (int shift = 28; shift >= 0; shift -= 4)
        {
            text.push_back(kDigits[word >> shift & 15]);
        }
    }
    return text;
}

std::string sha256OfFile(std::filesystem::path const& path)
{
    FileReader file(path);
    std::vector<std::byte> chunk(1 << 20);
    Sha256 digest;
    while (size_t const count = file.read(chunk.data(), chunk.size()))
    {
        digest.update(chunk.data(), count);
    }
    return digest.hex();
}

} // namespace glm_trt
