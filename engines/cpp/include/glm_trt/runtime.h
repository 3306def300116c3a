// glm-trt: a bundle's TensorRT engines from C++. Link glm_trt::glm_trt; see docs/runtime_cpp.md.
//
//     auto runtime = glm_trt::Runtime::load("bundle");
//     auto sequence = runtime.sequence();
//     glm_trt::GenerateOptions options;
//     auto result = sequence.generate({154822, 154824}, options, [](int64_t token) { return true; });
//
// | what               | shape    | type    |                                                             |
// |--------------------|----------|---------|-------------------------------------------------------------|
// | ids                | [S]      | int64   | 0 ... vocabSize() - 1; S >= 1                               |
// | logits             | [vocab]  | float32 | of the last token                                           |
// | a sequence's state | opaque   |         | length() tokens, at most maxSeqLen()                        |
//
// Everything throws glm_trt::Error or a class derived from it (errors.h), with the texts of the Python runtime. A
// runtime and its sequences are called from any thread, one at a time; several runtimes from several at once. The
// weights lie on the GPU once for all sequences of a runtime, and a sequence's states beside them. A sequence keeps
// alive what it needs of its runtime.
#pragma once

#include "errors.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace glm_trt
{

struct LoadOptions
{
    std::string backend;    // "tensorrt" or "tensorrt-rtx"; empty: defaultBackend()
    std::string checkpoint; // where the weights lie, if they moved
    std::string dtype;      // of the engines; empty: the checkpoint's
};

//! How a token is drawn; a seed means the same tokens as in Python. The defaults are greedy.
struct GenerateOptions
{
    int64_t maxNewTokens{32};
    double temperature{0.0};
    int64_t topK{0};
    double topP{1.0};
    double minP{0.0};
    double repetitionPenalty{1.0};
    uint64_t seed{0};
    std::vector<int64_t> endTokens; // empty: the bundle's
    bool ignoreEnd{false};
};

struct Generated
{
    std::vector<int64_t> tokens; // the end token included
    std::string finishReason;    // "stop", "length", "cancelled"
};

//! States of a sequence, on the host.
struct GLM_TRT_API State
{
    std::vector<int64_t> tokens; // that they hold
    std::vector<unsigned char> data;
};

class GLM_TRT_API Sequence
{
public:
    Sequence(Sequence&&) noexcept;
    Sequence& operator=(Sequence&&) noexcept;
    ~Sequence();

    //! Append ids [S], in chunks; logits [vocab] of the last, good until the next call.
    std::vector<float> const& prefill(std::vector<int64_t> const& ids);
    //! The same for one token.
    std::vector<float> const& decode(int64_t id);
    //! Append ids [S] and go on from there. onToken gets each token, and ends the sequence by returning false.
    Generated generate(std::vector<int64_t> const& ids, GenerateOptions const& options,
        std::function<bool(int64_t)> const& onToken = nullptr);
    //! Tokens that the states hold.
    int64_t length() const;
    void reset();
    State save();
    void restore(State const& state);
    //! Whether decoding replays a CUDA graph.
    bool usesGraph() const;

private:
    friend class Runtime;
    struct Impl;
    explicit Sequence(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> mImpl;
};

class GLM_TRT_API Runtime
{
public:
    //! Opens a bundle, every hash checked, and its engines for the GPU that is present, with the weights on it.
    static Runtime load(std::string const& bundle, LoadOptions const& options = {});
    Runtime(Runtime&&) noexcept;
    Runtime& operator=(Runtime&&) noexcept;
    ~Runtime();

    //! An empty sequence.
    Sequence sequence();
    int64_t maxSeqLen() const;
    int64_t vocabSize() const;
    std::vector<int64_t> const& endTokens() const;

private:
    friend class Sequence;
    struct Impl;
    explicit Runtime(std::shared_ptr<Impl> impl);
    std::shared_ptr<Impl> mImpl;
};

//! The backend that this library was built for, by the headers it was built with: the only one that it opens.
GLM_TRT_API char const* defaultBackend();

//! The release, such as "0.1.0".
GLM_TRT_API char const* version();

} // namespace glm_trt
