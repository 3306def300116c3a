// A bundle's weights on the device: uploaded once, shared by all sequences.
#pragma once

#include "bundle.h"
#include "device.h"

#include <map>
#include <string>

namespace glm_trt
{

//! Every distinct weight; blocks that bind the same tensors alike share one (a head that is tied to the embedding).
class DeviceWeights
{
public:
    //! Tensor after tensor: the host holds one at a time. Throws as bindInto, and MissingCapabilityError.
    DeviceWeights(Bundle const& bundle, Dtype dtype, Device& device);
    DeviceWeights(DeviceWeights const&) = delete;
    DeviceWeights& operator=(DeviceWeights const&) = delete;

    std::byte* at(Binding const& binding) const;

    //! What they take on the device, each rounded up to 256 bytes.
    static size_t bytes(Bundle const& bundle, Dtype dtype);

private:
    std::map<std::string, DeviceBuffer> mBuffers; // by what they are made of
};

} // namespace glm_trt
