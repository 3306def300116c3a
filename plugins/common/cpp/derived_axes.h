// Sizes that follow from attributes and other axes: a stack machine over numbers or expressions.
#pragma once

#include "operators.h"

#include <NvInfer.h>

namespace glm_trt
{

constexpr int64_t kUnknown = -1;

//! Run a derived axis's program: `axis`, `constant` and `combine` make and join values of type T.
template <typename T, typename Axis, typename Constant, typename Combine>
T runProgram(DerivedAxis const& derived, int32_t const* integers, Axis axis, Constant constant, Combine combine)
{
    T stack[kMaxInstructions]{};
    int32_t depth = 0;
    for (int32_t i = 0; i < derived.count; ++i)
    {
        Instruction const& instruction = derived.program[i];
        switch (instruction.opcode)
        {
        case Opcode::kAXIS: stack[depth++] = axis(instruction.value); break;
        case Opcode::kINTEGER: stack[depth++] = constant(integers[instruction.value]); break;
        case Opcode::kCONSTANT: stack[depth++] = constant(instruction.value); break;
        default:
            --depth;
            stack[depth - 1] = combine(instruction.opcode, stack[depth - 1], stack[depth]);
            break;
        }
    }
    return stack[0];
}

inline int64_t combineSizes(Opcode opcode, int64_t a, int64_t b)
{
    switch (opcode)
    {
    case Opcode::kADD: return a + b;
    case Opcode::kSUBTRACT: return a - b;
    case Opcode::kMULTIPLY: return a * b;
    case Opcode::kDIVIDE: return b == 0 ? kUnknown : a / b;
    case Opcode::kMINIMUM: return std::min(a, b);
    default: return std::max(a, b);
    }
}

inline nvinfer1::DimensionOperation toDimensionOperation(Opcode opcode)
{
    switch (opcode)
    {
    case Opcode::kADD: return nvinfer1::DimensionOperation::kSUM;
    case Opcode::kSUBTRACT: return nvinfer1::DimensionOperation::kSUB;
    case Opcode::kMULTIPLY: return nvinfer1::DimensionOperation::kPROD;
    case Opcode::kDIVIDE: return nvinfer1::DimensionOperation::kFLOOR_DIV;
    case Opcode::kMINIMUM: return nvinfer1::DimensionOperation::kMIN;
    default: return nvinfer1::DimensionOperation::kMAX;
    }
}

} // namespace glm_trt
