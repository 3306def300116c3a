// The buffers of a sequence: which there are, how large, and whether the device has room for them.
#pragma once

#include "bundle.h"
#include "device.h"
#include "engine.h"

#include <map>
#include <memory>
#include <string>
#include <vector>

namespace glm_trt
{

//! Device memory by what it is for. A line of the table that an error shows.
struct MemoryUse
{
    std::string what;
    size_t bytes;
};

using Engines = std::map<std::string, std::shared_ptr<Engine>>; // by kind

//! The device memory that a sequence on these engines takes, largest first. Every buffer is rounded up to 256 bytes,
//! TensorRT's alignment.
std::vector<MemoryUse> sequenceMemory(Bundle const& bundle, Engines const& engines, Dtype dtype);

//! The same with the weights, which sequences share.
std::vector<MemoryUse> wholeMemory(Bundle const& bundle, Engines const& engines, Dtype dtype);

//! Throws MissingCapabilityError, which lists the parts, where the device has not so much memory.
void requireMemory(Device& device, std::vector<MemoryUse> const& uses);

//! Every buffer but the weights, with its size.
std::map<std::string, size_t> bufferSizes(Bundle const& bundle, Engines const& engines, Dtype dtype);

//! Activations by the buffer that holds them. hidden goes to two by turns; the head has its own, of one token. number:
//! of the block in the pass.
std::string bufferOf(std::string const& kind, std::string const& name, size_t number);

//! A state of a block; one without a capacity goes to two by turns (0, 1).
std::string stateBuffer(Block const& block, StateSpec const& spec, int turn);

//! What a state takes for `capacity` tokens.
size_t stateBytes(StateSpec const& spec, int64_t capacity, Dtype dtype);

} // namespace glm_trt
