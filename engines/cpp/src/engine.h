// Engines of block kinds, whoever runs them.
#pragma once

#include "tensor.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace glm_trt
{

//! An input or output of an engine. shape: -1 where it is open, which is the number of tokens.
struct IoTensor
{
    std::string name;
    bool isInput;
    size_t elementBytes;
    std::vector<int64_t> shape;
};

//! One block on one optimisation profile: its addresses, set once or from pass to pass.
class Execution
{
public:
    virtual ~Execution() = default;
    virtual void setAddress(std::string const& name, std::byte* address) = 0;
    virtual void setShape(std::string const& name, std::vector<int64_t> const& shape) = 0;
    //! Queue a run on the device's stream. Throws Error.
    virtual void run() = 0;
};

//! The engine of a kind. Its executions are destroyed before it. profile: 0 takes one token, 1 several.
class Engine
{
public:
    virtual ~Engine() = default;
    virtual std::vector<IoTensor> const& io() const = 0;
    //! What a run may need for itself.
    virtual size_t scratchBytes() const = 0;
    //! The most tokens of a pass.
    virtual int64_t maxTokens() const = 0;
    //! scratch: at least scratchBytes, which executions that run one after another share.
    virtual std::unique_ptr<Execution> execution(int profile, std::byte* scratch) = 0;
};

} // namespace glm_trt
