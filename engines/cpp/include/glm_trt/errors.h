// What the library throws. Messages are those of the Python runtime: what was wrong, where (file,
// tensor, block), what was expected and found.
#pragma once

#include <stdexcept>

#if defined(_WIN32)
#define GLM_TRT_API
#else
#define GLM_TRT_API __attribute__((visibility("default")))
#endif

namespace glm_trt
{

//! Wrong input. exitCode() is what a command ends with.
class GLM_TRT_API Error : public std::runtime_error
{
public:
    using std::runtime_error::runtime_error;
    virtual int exitCode() const noexcept
    {
        return 2;
    }
};

//! A checkpoint whose files or tensors are not what they should be.
class GLM_TRT_API CheckpointError : public Error
{
public:
    using Error::Error;
};

//! A bundle that is incomplete, altered or of another format version.
class GLM_TRT_API BundleError : public Error
{
public:
    using Error::Error;
};

//! The machine lacks what was asked for: a GPU, a driver, a library.
class GLM_TRT_API MissingCapabilityError : public Error
{
public:
    using Error::Error;
    int exitCode() const noexcept override
    {
        return 3;
    }
};

} // namespace glm_trt
