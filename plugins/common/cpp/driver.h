// The CUDA driver, found at run time: the library loads on a machine that has none.
#pragma once

#include <cstdint>
#include <string>

namespace glm_trt
{

//! One compiled kernel, embedded in the library by the build.
struct Kernel
{
    char const* entry;
    unsigned char const* image;
    int32_t sharedBytes;
    int32_t threads;
};

//! What went wrong, or nothing.
using Error = std::string;

//! The target whose kernels the current device runs, as an index of kTargets.
Error currentTarget(int32_t& target) noexcept;

//! Load `kernel` into the current context, where it is not yet loaded.
Error prepareKernel(Kernel const& kernel) noexcept;

//! Launch `kernel` on `stream`; `parameters` point to its run-time parameters in order.
Error launchKernel(Kernel const& kernel, uint32_t const (&grid)[3], void** parameters, void* stream) noexcept;

} // namespace glm_trt
