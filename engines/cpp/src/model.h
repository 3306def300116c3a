// A bundle's blocks on engines: weights bound once, states, and passes over them.
#pragma once

#include "bundle.h"
#include "device.h"
#include "engine.h"
#include "memory_use.h"
#include "weights.h"

#include <map>
#include <memory>
#include <string>
#include <vector>

namespace glm_trt
{

//! States of one sequence, apart from the device. Tensors of the layers one after another, as they lie there.
struct SavedStates
{
    int64_t length;
    std::vector<std::byte> data;
};

//! One sequence. Engines are of batch 1 and of static capacity: sequences run one after another. Any thread may call, one
//! at a time.
class Model
{
public:
    //! Throws MissingCapabilityError where the device has too little memory: before anything is allocated.
    Model(Bundle const& bundle, Engines engines, DeviceWeights const& weights, std::string const& dtype,
        Device& device);
    Model(Model const&) = delete;
    Model& operator=(Model const&) = delete;
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

    void open();
    void close() noexcept;
    void allocate();
    void prepare(Layer& layer, size_t number, int profile);
    void queue(int64_t tokens, int turn);
    void step(int64_t const* ids, int64_t tokens);
    void readLogits();
    void clearStates(bool withCaches);
    std::byte* shared(std::string const& name);

    Bundle const& mBundle;
    Engines mEngines;
    DeviceWeights const& mWeights;
    Dtype mDtype;
    Device& mDevice;
    int64_t mMaxTokens;
    int64_t mLength{0};
    int mTurn{0};
    bool mHasTurns{false};
    bool mTriedRecording[2]{false, false};
    std::unique_ptr<RecordedWork> mRecorded[2]; // of a turn
    std::map<std::string, DeviceBuffer> mBuffers;
    std::vector<Layer> mLayers;
    size_t mElementBytes;
    std::vector<float> mLogits;
    std::vector<std::byte> mRaw; // logits as the engine gives them
};

} // namespace glm_trt
