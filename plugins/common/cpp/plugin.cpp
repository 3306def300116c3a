#include "derived_axes.h"
#include "plugin.h"

#include <cstring>
#include <new>

namespace glm_trt
{
using nvinfer1::DataType;

namespace
{

constexpr size_t kPointerAlignment = 16;

DataType toTensorRt(Dtype dtype)
{
    switch (dtype)
    {
    case Dtype::kFLOAT32: return DataType::kFLOAT;
    case Dtype::kFLOAT16: return DataType::kHALF;
    case Dtype::kBFLOAT16: return DataType::kBF16;
    case Dtype::kINT8: return DataType::kINT8;
    case Dtype::kINT32: return DataType::kINT32;
    case Dtype::kINT64: return DataType::kINT64;
    case Dtype::kACTIVATION:
    case Dtype::kSTATE: break;
    }
    return DataType::kFLOAT;
}

bool isActivation(DataType type)
{
    return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

char const* nameOf(DataType type)
{
    return type == DataType::kHALF ? "float16" : type == DataType::kBF16 ? "bfloat16" : "float32";
}

} // namespace

OperatorPlugin::OperatorPlugin(Operator const& op, AttributeValues const& values, int64_t askedBytes)
    : mOperator(op)
    , mValues(values)
    , mInputCount(op.inputCount)
    , mAskedBytes(std::make_shared<std::atomic<int64_t>>(askedBytes))
{
    for (int32_t i = 0; i < op.attributeCount; ++i)
    {
        Attribute const& attribute = op.attributes[i];
        void const* data = &mValues.integers[i];
        int32_t length = 1;
        if (attribute.kind == AttributeKind::kFLOAT)
        {
            data = &mValues.floats[i];
        }
        else if (attribute.kind == AttributeKind::kCHOICE)
        {
            data = attribute.choices[mValues.integers[i]];
            length = static_cast<int32_t>(std::strlen(attribute.choices[mValues.integers[i]]));
        }
        mFields.emplace_back(attribute.name, data, fieldType(attribute), length);
    }
    auto const length = static_cast<int32_t>(std::strlen(kVersion));
    mFields.emplace_back(kVersionField, kVersion, nvinfer1::PluginFieldType::kCHAR, length);
    mFields.emplace_back(kWorkspaceField, &mSerializedBytes, nvinfer1::PluginFieldType::kINT64, 1);
    mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
}

nvinfer1::IPluginCapability* OperatorPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept
{
    switch (type)
    {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* OperatorPlugin::clone() noexcept
{
    OperatorPlugin* copy = nullptr;
    logged(mOperator, [&]() -> Error {
        copy = new OperatorPlugin(mOperator, mValues);
        copy->mInputCount = mInputCount;
        copy->mAskedBytes = mAskedBytes;
        return {};
    });
    return copy;
}

char const* OperatorPlugin::getPluginName() const noexcept
{
    return mOperator.name;
}

char const* OperatorPlugin::getPluginVersion() const noexcept
{
    return kPluginVersion;
}

char const* OperatorPlugin::getPluginNamespace() const noexcept
{
    return mOperator.domain;
}

int32_t OperatorPlugin::getNbOutputs() const noexcept
{
    return mOperator.outputCount;
}

int32_t OperatorPlugin::firstInput(Dtype variable, int32_t count) const noexcept
{
    for (int32_t i = 0; i < count; ++i)
    {
        if (mOperator.inputs[i].dtype == variable)
        {
            return i;
        }
    }
    return -1;
}

Error OperatorPlugin::describe(
    nvinfer1::Dims const* shapes, DataType const* types, int32_t count, Call& call) const
{
    for (int32_t i = 0; i < mOperator.inputCount; ++i)
    {
        call.present[i] = i < count;
        if (i >= count && !mOperator.inputs[i].optional)
        {
            return std::string(mOperator.inputs[i].name) + ": missing";
        }
    }
    std::fill(std::begin(call.axes), std::end(call.axes), kUnknown);
    for (int32_t i = 0; i < count; ++i)
    {
        Port const& port = mOperator.inputs[i];
        if (shapes[i].nbDims != port.rank)
        {
            return std::string(port.name) + ": expected " + std::to_string(port.rank) + " axes, found "
                + std::to_string(shapes[i].nbDims);
        }
        for (int32_t axis = 0; axis < port.rank; ++axis)
        {
            int64_t& size = call.axes[port.axes[axis]];
            if (size != kUnknown && size != shapes[i].d[axis])
            {
                return std::string(port.name) + ": axis " + std::to_string(axis) + ": expected "
                    + std::to_string(size) + ", found " + std::to_string(shapes[i].d[axis]);
            }
            size = shapes[i].d[axis];
        }
    }
    for (int32_t i = 0; i < mOperator.attributeCount; ++i)
    {
        call.integers[i] = mValues.integers[i];
        call.floats[i] = mValues.floats[i];
    }
    for (int32_t i = 0; i < mOperator.derivedCount; ++i)
    {
        DerivedAxis const& derived = mOperator.derived[i];
        auto const expected = runProgram<int64_t>(
            derived, mValues.integers, [&](int32_t axis) { return call.axes[axis]; },
            [](int32_t value) { return int64_t{value}; }, combineSizes);
        int64_t& size = call.axes[derived.axis];
        if (expected < 0 || (size != kUnknown && size != expected))
        {
            return "sizes and attributes contradict each other: expected an axis of " + std::to_string(expected)
                + ", found " + std::to_string(size);
        }
        size = expected;
    }
    std::replace(std::begin(call.axes), std::end(call.axes), kUnknown, int64_t{0});
    int32_t const activation = firstInput(Dtype::kACTIVATION, count);
    int32_t const state = firstInput(Dtype::kSTATE, count);
    DataType const activationType = activation < 0 ? DataType::kFLOAT : types[activation];
    DataType const stateType = state < 0 ? activationType : types[state];
    for (call.types = 0; call.types < mOperator.typesCount; ++call.types)
    {
        Types const& known = mOperator.types[call.types];
        if (toTensorRt(known.activation) == activationType && toTensorRt(known.state) == stateType)
        {
            return {};
        }
    }
    return std::string("no kernels for ") + nameOf(activationType) + " with " + nameOf(stateType);
}

int32_t OperatorPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
    nvinfer1::DynamicPluginTensorDesc const*, int32_t nbOutputs) noexcept
{
    return logged(mOperator, [&]() -> Error {
        if (nbInputs > mOperator.inputCount || nbOutputs != mOperator.outputCount)
        {
            return "expected at most " + std::to_string(mOperator.inputCount) + " inputs and "
                + std::to_string(mOperator.outputCount) + " outputs, found " + std::to_string(nbInputs) + " and "
                + std::to_string(nbOutputs);
        }
        nvinfer1::Dims shapes[kMaxPorts];
        DataType types[kMaxPorts];
        for (int32_t i = 0; i < nbInputs; ++i)
        {
            shapes[i] = in[i].max;
            types[i] = in[i].desc.type;
        }
        mInputCount = nbInputs;
        Call call{};
        Error const error = describe(shapes, types, nbInputs, call);
        return error.empty() ? mOperator.check(call) : error;
    });
}

bool OperatorPlugin::supportsFormatCombination(
    int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t) noexcept
{
    bool const isInput = pos < nbInputs;
    Port const& port = isInput ? mOperator.inputs[pos] : mOperator.outputs[pos - nbInputs];
    nvinfer1::PluginTensorDesc const& found = inOut[pos].desc;
    if (found.format != nvinfer1::TensorFormat::kLINEAR)
    {
        return false;
    }
    int32_t const activation = firstInput(Dtype::kACTIVATION, nbInputs);
    int32_t const state = firstInput(Dtype::kSTATE, nbInputs);
    if (port.dtype == Dtype::kACTIVATION)
    {
        return pos == activation ? isActivation(found.type) : found.type == inOut[activation].desc.type;
    }
    if (port.dtype == Dtype::kSTATE)
    {
        DataType const activationType = inOut[activation].desc.type;
        return pos == state ? found.type == DataType::kFLOAT || found.type == activationType
                            : found.type == (state < 0 ? activationType : inOut[state].desc.type);
    }
    return found.type == toTensorRt(port.dtype);
}

int32_t OperatorPlugin::getOutputDataTypes(
    DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    int32_t const activation = firstInput(Dtype::kACTIVATION, nbInputs);
    int32_t const state = firstInput(Dtype::kSTATE, nbInputs);
    for (int32_t i = 0; i < nbOutputs; ++i)
    {
        Dtype const dtype = mOperator.outputs[i].dtype;
        bool const follows = dtype == Dtype::kACTIVATION || dtype == Dtype::kSTATE;
        int32_t const like = dtype == Dtype::kSTATE && state >= 0 ? state : activation;
        outputTypes[i] = follows ? inputTypes[like] : toTensorRt(dtype);
    }
    return 0;
}

int32_t OperatorPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
    nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
    nvinfer1::IExprBuilder& exprBuilder) noexcept
{
    return logged(mOperator, [&]() -> Error {
        nvinfer1::IDimensionExpr const* axes[kMaxAxes]{};
        for (int32_t i = 0; i < nbInputs; ++i)
        {
            Port const& port = mOperator.inputs[i];
            if (inputs[i].nbDims != port.rank)
            {
                return std::string(port.name) + ": expected " + std::to_string(port.rank) + " axes, found "
                    + std::to_string(inputs[i].nbDims);
            }
            for (int32_t axis = 0; axis < port.rank; ++axis)
            {
                axes[port.axes[axis]] = inputs[i].d[axis];
            }
        }
        for (int32_t i = 0; i < mOperator.derivedCount; ++i)
        {
            DerivedAxis const& derived = mOperator.derived[i];
            if (axes[derived.axis] == nullptr)
            {
                using Size = nvinfer1::IDimensionExpr const*;
                axes[derived.axis] = runProgram<Size>(
                    derived, mValues.integers, [&](int32_t axis) { return axes[axis]; },
                    [&](int32_t value) { return exprBuilder.constant(value); },
                    [&](Opcode opcode, Size a, Size b) {
                        return exprBuilder.operation(toDimensionOperation(opcode), *a, *b);
                    });
            }
        }
        for (int32_t i = 0; i < nbOutputs; ++i)
        {
            Port const& port = mOperator.outputs[i];
            outputs[i].nbDims = port.rank;
            for (int32_t axis = 0; axis < port.rank; ++axis)
            {
                outputs[i].d[axis] = axes[port.axes[axis]];
            }
        }
        return {};
    });
}

// NvInferRuntime.h: the result is "a sufficient workspace size to deal with inputs and outputs of the
// given size or any smaller problem". The launches' buffers are made so (launch.py, Buffer).
size_t OperatorPlugin::getWorkspaceSize(
    nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t nbInputs, nvinfer1::DynamicPluginTensorDesc const*, int32_t) const noexcept
{
    size_t bytes = 0;
    logged(mOperator, [&]() -> Error {
        nvinfer1::Dims shapes[kMaxPorts];
        DataType types[kMaxPorts];
        for (int32_t i = 0; i < nbInputs; ++i)
        {
            shapes[i] = inputs[i].max;
            types[i] = inputs[i].desc.type;
        }
        Call call{};
        Error error = describe(shapes, types, nbInputs, call);
        if (error.empty())
        {
            bytes = mOperator.workspaceBytes(call);
            auto const asked = static_cast<int64_t>(bytes);
            int64_t most = *mAskedBytes;
            while (most < asked && !mAskedBytes->compare_exchange_weak(most, asked))
            {
            }
        }
        return error;
    });
    return bytes;
}

int32_t OperatorPlugin::onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs,
    nvinfer1::PluginTensorDesc const*, int32_t) noexcept
{
    return logged(mOperator, [&]() -> Error {
        nvinfer1::Dims shapes[kMaxPorts];
        DataType types[kMaxPorts];
        for (int32_t i = 0; i < nbInputs; ++i)
        {
            shapes[i] = in[i].dims;
            types[i] = in[i].type;
        }
        mInputCount = nbInputs;
        Call call{};
        Error error = describe(shapes, types, nbInputs, call);
        if (error.empty())
        {
            error = mOperator.check(call);
        }
        // Loading kernels here keeps it out of a captured graph. A builder without a GPU also
        // calls this, and must not fail: `enqueue` says what is missing.
        if (error.empty() && currentTarget(call.target).empty())
        {
            call.prepareOnly = true;
            error = mOperator.launch(call);
        }
        return error;
    });
}

Error OperatorPlugin::checkWorkspace(Call const& call) const
{
    size_t const needed = mOperator.workspaceBytes(call);
    if (needed == 0)
    {
        return {};
    }
    std::string const expected = "workspace: expected " + std::to_string(needed) + " bytes, found ";
    if (call.workspace == nullptr)
    {
        return expected + "a null address";
    }
    int64_t const asked = *mAskedBytes;
    if (asked != kUnasked && needed > static_cast<size_t>(asked))
    {
        return expected + std::to_string(asked) + ", for which the engine was built: sizes exceed its profiles";
    }
    if (reinterpret_cast<uintptr_t>(call.workspace) % kPointerAlignment != 0)
    {
        return "workspace: expected an address at a multiple of " + std::to_string(kPointerAlignment) + " bytes";
    }
    return {};
}

int32_t OperatorPlugin::enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const*,
    void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept
{
    return logged(mOperator, [&]() -> Error {
        nvinfer1::Dims shapes[kMaxPorts];
        DataType types[kMaxPorts];
        Call call{};
        for (int32_t i = 0; i < mInputCount; ++i)
        {
            shapes[i] = inputDesc[i].dims;
            types[i] = inputDesc[i].type;
            call.inputs[i] = inputs[i];
            if (reinterpret_cast<uintptr_t>(inputs[i]) % kPointerAlignment != 0)
            {
                return std::string(mOperator.inputs[i].name) + ": expected an address at a multiple of "
                    + std::to_string(kPointerAlignment) + " bytes";
            }
        }
        for (int32_t i = 0; i < mOperator.outputCount; ++i)
        {
            call.outputs[i] = outputs[i];
            if (reinterpret_cast<uintptr_t>(outputs[i]) % kPointerAlignment != 0)
            {
                return std::string(mOperator.outputs[i].name) + ": expected an address at a multiple of "
                    + std::to_string(kPointerAlignment) + " bytes";
            }
        }
        call.workspace = workspace;
        call.stream = stream;
        Error error = describe(shapes, types, mInputCount, call);
        if (error.empty())
        {
            error = mOperator.check(call);
        }
        if (error.empty())
        {
            error = checkWorkspace(call);
        }
        if (error.empty())
        {
            error = currentTarget(call.target);
        }
        return error.empty() ? mOperator.launch(call) : error;
    });
}

nvinfer1::IPluginV3* OperatorPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept
{
    return clone();
}

nvinfer1::PluginFieldCollection const* OperatorPlugin::getFieldsToSerialize() noexcept
{
    mSerializedBytes = *mAskedBytes;
    return &mCollection;
}

} // namespace glm_trt
