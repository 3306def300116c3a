// What an image says of its kernels: ELF as nvcc and Triton write it, or PTX text.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

namespace stand_in
{

struct Entry
{
    struct Parameter
    {
        size_t offset;
        size_t bytes;
    };
    std::vector<Parameter> parameters;
    size_t sharedBytes{0};            //!< that are its own, beside what a launch asks for
    unsigned requiredThreads[3]{};    //!< of a block; 0: any
    bool doesNothing{false};          //!< PTX that returns at once
};

struct Image
{
    int capability{0};
    bool isPtx{false};
    std::string sha256;
    std::map<std::string, Entry> entries;
};

//! Throws std::runtime_error where it is none.
Image readImage(void const* data);

std::string sha256Of(void const* data, size_t bytes);

} // namespace stand_in
