// SHA-256 (FIPS 180-4). By hand: the runtime links to no library but those of C and C++.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

namespace glm_trt
{

class Sha256
{
public:
    void update(void const* data, size_t bytes);
    //! The digest in hex; nothing may be added after.
    std::string hex();

private:
    void block(uint8_t const* data);

    std::array<uint32_t, 8> mState{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab,
        0x5be0cd19};
    std::array<uint8_t, 64> mBuffer{};
    size_t mHeld{0};
    uint64_t mBytes{0};
};

//! Of a file's content, read piece by piece. Throws BundleError if it cannot be read.
std::string sha256OfFile(std::filesystem::path const& path);

} // namespace glm_trt
