// Headers of safetensors files, and the tensors that they announce.
#include "fuzz_target.h"
#include "glm_trt/errors.h"
#include "safetensors.h"

#include <cstdlib>

namespace
{

bool accepted = false;
constexpr size_t kData = 64; // bytes of data behind the header

} // namespace

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size)
{
    accepted = false;
    std::string const header(reinterpret_cast<char const*>(data), size);
    size_t const fileBytes = 8 + size + kData;
    try
    {
        for (auto const& [name, info] : glm_trt::parseSafetensorsHeader("file", header, fileBytes))
        {
            if (info.offset > fileBytes || info.bytes > fileBytes - info.offset)
            {
                std::abort(); // a tensor beyond its file
            }
        }
        accepted = true;
    }
    catch (glm_trt::CheckpointError const&)
    {
    }
    return 0;
}

std::vector<std::string> fuzzSeeds()
{
    return {R"({"a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},)"
            R"( "b": {"dtype": "BF16", "shape": [16], "data_offsets": [32, 64]}})",
        R"({"__metadata__": {"format": "pt"}, "x.0.weight": {"dtype": "F8_E4M3", "shape": [4, 8], "data_offsets": [0, 32]},)"
        R"( "y": {"dtype": "I8", "shape": [31], "data_offsets": [32, 63]}, "z": {"dtype": "U8", "shape": [],)"
        R"( "data_offsets": [63, 64]}, "empty": {"dtype": "F16", "shape": [0, 5], "data_offsets": [64, 64]}})"};
}

bool wasAccepted()
{
    return accepted;
}
