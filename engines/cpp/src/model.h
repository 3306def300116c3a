// A bundle's blocks on engines: weights bound once, states, and passes over them.
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

//! The device memory that a sequence on these engines takes, weights included, largest first. Every buffer is rounded
//! up to 256 bytes, TensorRT's alignment.
std::vector<MemoryUse> memoryPlan(Bundle const& bundle, Engines const& engines, Dtype dtype);

//! States of one sequence, apart from the device. Tensors of the layers one after another, as they lie there.
struct SavedStates
{
    int64_t length;
    std::vector<std::byte> data;
};

//! One sequence. Engines are of batch 1 and of static capacity: sequences run one after another.
class Model
{
public:
    //! Throws MissingCapabilityError where the device has too little memory: before anything is allocated.
    Model(Bundle const& bundle, Engines engines, std::string const& dtype, Device& device);
    ~Model();

    //! Append ids; the logits of the last one [vocab]. Throws Error if the sequence would outgrow maxSeqLen.
    std::vector<float> const& append(std::vector<int64_t> const& ids);
    int64_t length() const
    {
        return mLength;
    }
    //! An empty sequence.
    void reset();
    SavedStates save();
    void restore(SavedStates const& states);
    //! Whether steps of one token are replayed as recorded.
    bool isRecorded() const
    {
        return mRecorded[0] != nullptr;
    }

private:
    struct Layer;

    void allocate(std::vector<MemoryUse> const& plan);
    void bindWeights();
    void prepare(Layer& layer, size_t number, int profile);
    void queue(int64_t tokens, int turn);
    void step(int64_t const* ids, int64_t tokens);
    void readLogits();
    void clearStates(bool withCaches);
    std::byte* shared(std::string const& name);

    Bundle const& mBundle;
    Engines mEngines;
    Dtype mDtype;
    Device& mDevice;
    int64_t mMaxTokens{1};
    int64_t mLength{0};
    int mTurn{0};
    bool mHasTurns{false};
    bool mTriedRecording[2]{false, false};
    std::unique_ptr<RecordedWork> mRecorded[2]; // of a turn
    std::map<std::string, DeviceBuffer> mBuffers;
    std::map<std::string, std::byte*> mWeights; // by what they are made of
    std::vector<Layer> mLayers;
    size_t mElementBytes;
    std::vector<float> mLogits;
    std::vector<std::byte> mRaw; // logits as the engine gives them
};

} // namespace glm_trt
