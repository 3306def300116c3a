// What the build generates from the operators' contracts and launches.
#pragma once

#include "driver.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <utility>

namespace glm_trt
{

constexpr int32_t kMaxPorts = 12;
constexpr int32_t kMaxRank = 8;
constexpr int32_t kMaxAxes = 16;
constexpr int32_t kMaxAttributes = 8;
constexpr int32_t kMaxChoices = 4;
constexpr int32_t kMaxTypes = 5;
constexpr int32_t kMaxDerived = 6;
constexpr int32_t kMaxInstructions = 8;

enum class Dtype : int32_t
{
    kFLOAT32,
    kFLOAT16,
    kBFLOAT16,
    kINT8, //!< also FP8 and FP4 bytes: TensorRT refuses UINT8, and FP8 on old targets
    kINT32,
    kINT64,
    kACTIVATION, //!< the dtype of the block: one of the first three
    kSTATE,      //!< float32 or the dtype of the block
};

//! An input or output. Axes are indices into the operator's list of axes.
struct Port
{
    char const* name;
    Dtype dtype;
    bool optional;
    int32_t rank;
    int32_t axes[kMaxRank];
};

enum class AttributeKind : int32_t
{
    kINTEGER,
    kFLOAT,
    kCHOICE, //!< a string out of `choices`; its value is the index
};

struct Attribute
{
    char const* name;
    AttributeKind kind;
    int32_t choiceCount;
    char const* choices[kMaxChoices];
};

//! What `kACTIVATION` and `kSTATE` stand for in one call.
struct Types
{
    Dtype activation;
    Dtype state;
};

enum class Opcode : int32_t
{
    kAXIS,     //!< push the size of axis `value`
    kINTEGER,  //!< push attribute `value`
    kCONSTANT, //!< push `value`
    kADD,
    kSUBTRACT,
    kMULTIPLY,
    kDIVIDE,
    kMINIMUM,
    kMAXIMUM,
};

struct Instruction
{
    Opcode opcode;
    int32_t value;
};

//! An axis whose size follows from attributes and other axes: a program for a stack machine.
struct DerivedAxis
{
    int32_t axis;
    int32_t count;
    Instruction program[kMaxInstructions];
};

//! One call of an operator: sizes, attributes and addresses.
struct Call
{
    int64_t axes[kMaxAxes]; //!< 0 where only an absent input has the axis
    int64_t integers[kMaxAttributes];
    float floats[kMaxAttributes];
    int32_t types;  //!< index of the operator's `types`
    int32_t target; //!< index of kTargets
    bool present[kMaxPorts];
    void const* inputs[kMaxPorts]; //!< null where an optional one is absent
    void* outputs[kMaxPorts];
    void* workspace;
    void* stream;
    bool prepareOnly; //!< load the kernels, launch nothing
};

//! An operator: its contract, and what its launches became.
struct Operator
{
    char const* name;
    char const* domain; //!< of ONNX; the plugin's namespace
    int32_t inputCount;
    Port inputs[kMaxPorts];
    int32_t outputCount;
    Port outputs[kMaxPorts];
    int32_t typesCount;
    Types types[kMaxTypes];
    int32_t attributeCount;
    Attribute attributes[kMaxAttributes];
    int32_t axisCount;
    int32_t derivedCount;
    DerivedAxis derived[kMaxDerived];
    size_t (*workspaceBytes)(Call const&);
    Error (*check)(Call const&); //!< whether the kernels can do these sizes
    Error (*launch)(Call const&);
};

extern Operator const kOperators[];
extern int32_t const kOperatorCount;
extern int32_t const kTargets[];
extern int32_t const kTargetCount;
extern char const* const kVersion;
//! The targets that the library has kernels for, in words: all of kTargets, or some.
extern char const* const kTargetNames;

// The functions of the language that launches are written in.
constexpr int64_t cdiv(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

constexpr int64_t next_power_of_2(int64_t n)
{
    int64_t power = 1;
    while (power < n)
    {
        power *= 2;
    }
    return power;
}

//! The index of the smallest of `values` that is at least `needed`; -1 where none is.
inline int32_t pickIndex(std::initializer_list<int64_t> values, int64_t needed)
{
    int32_t i = 0;
    for (int64_t const value : values)
    {
        if (value >= needed)
        {
            return i;
        }
        ++i;
    }
    return -1;
}

//! `offset` bytes into the workspace.
inline void* inWorkspace(Call const& call, size_t offset)
{
    return static_cast<char*>(call.workspace) + offset;
}

constexpr size_t aligned(size_t bytes)
{
    constexpr size_t kAlignment = 256;
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

//! The error of a launch whose kernel was not selected when the library was built.
Error absentKernel(Operator const& op, Call const& call, char const* kernel,
    std::initializer_list<std::pair<char const*, int64_t>> constants);

//! Check grid and 32-bit arguments, then launch (or only load) `kernel`.
Error launchChecked(Call const& call, Kernel const& kernel, int64_t const (&grid)[3],
    std::initializer_list<int64_t> integers, void** parameters);

} // namespace glm_trt
