// One TensorRT plugin class for every operator: what differs is data (operators.h).
#pragma once

#include "operators.h"

#include <NvInfer.h>

#include <atomic>
#include <exception>
#include <memory>
#include <string>
#include <vector>

namespace glm_trt
{

constexpr char const* kPluginVersion = "1";
//! The field under which a plan keeps the version of the library that it was built with.
constexpr char const* kVersionField = "glm_trt_version";
//! The field under which a plan keeps the bytes of workspace that the plugin asked for.
constexpr char const* kWorkspaceField = "workspace_bytes";
constexpr int64_t kUnasked = -1;

//! The values of an operator's attributes, in the contract's order; a choice is its index.
struct AttributeValues
{
    int32_t integers[kMaxAttributes]{};
    float floats[kMaxAttributes]{};
};

class OperatorPlugin final : public nvinfer1::IPluginV3,
                             public nvinfer1::IPluginV3OneCore,
                             public nvinfer1::IPluginV3OneBuild,
                             public nvinfer1::IPluginV3OneRuntime
{
public:
    OperatorPlugin(Operator const& op, AttributeValues const& values, int64_t askedBytes = kUnasked);
    OperatorPlugin(OperatorPlugin const&) = delete;
    OperatorPlugin& operator=(OperatorPlugin const&) = delete;

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    char const* getPluginName() const noexcept override;
    char const* getPluginVersion() const noexcept override;
    char const* getPluginNamespace() const noexcept override;

    int32_t getNbOutputs() const noexcept override;
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept override;
    bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
        int32_t nbOutputs) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs,
        nvinfer1::DataType const* inputTypes, int32_t nbInputs) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
        nvinfer1::DimsExprs const* shapeInputs, int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
        nvinfer1::IExprBuilder& exprBuilder) noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t nbOutputs) const noexcept override;

    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs,
        nvinfer1::PluginTensorDesc const* out, int32_t nbOutputs) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

private:
    //! Sizes, attributes and dtypes of a call on `count` inputs. Optional ones may be missing at the end.
    Error describe(nvinfer1::Dims const* shapes, nvinfer1::DataType const* types, int32_t count, Call& call) const;
    //! The index of the first input of a type variable; -1 where there is none among `count` inputs.
    int32_t firstInput(Dtype variable, int32_t count) const noexcept;
    //! Whether the workspace at `call.workspace` is there and large enough for the call.
    Error checkWorkspace(Call const& call) const;

    Operator const& mOperator;
    AttributeValues mValues;
    int32_t mInputCount; //!< of the layer; `enqueue` is not told
    //! The most that `getWorkspaceSize` has answered; clones share it. TensorRT asks while it builds,
    //! once for each profile, and tells `enqueue` no size: the answer goes with the plan.
    std::shared_ptr<std::atomic<int64_t>> mAskedBytes;
    int64_t mSerializedBytes{kUnasked};
    std::vector<nvinfer1::PluginField> mFields;
    nvinfer1::PluginFieldCollection mCollection{};
};

class OperatorCreator final : public nvinfer1::IPluginCreatorV3One
{
public:
    explicit OperatorCreator(Operator const& op);

    nvinfer1::IPluginV3* createPlugin(char const* name, nvinfer1::PluginFieldCollection const* fc,
        nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
    char const* getPluginName() const noexcept override;
    char const* getPluginVersion() const noexcept override;
    char const* getPluginNamespace() const noexcept override;

private:
    Operator const& mOperator;
    std::vector<nvinfer1::PluginField> mFields;
    nvinfer1::PluginFieldCollection mCollection{};
};

//! Give an error to TensorRT's logger, or to stderr where none was set.
void logError(char const* op, std::string const& message) noexcept;

inline nvinfer1::PluginFieldType fieldType(Attribute const& attribute)
{
    switch (attribute.kind)
    {
    case AttributeKind::kFLOAT: return nvinfer1::PluginFieldType::kFLOAT32;
    case AttributeKind::kCHOICE: return nvinfer1::PluginFieldType::kCHAR;
    case AttributeKind::kINTEGER: break;
    }
    return nvinfer1::PluginFieldType::kINT32;
}

//! Run `work`; log an error or exception, so that nothing throws into TensorRT. 0 is success.
template <typename Work>
int32_t logged(Operator const& op, Work work) noexcept
{
    try
    {
        Error const error = work();
        if (error.empty())
        {
            return 0;
        }
        logError(op.name, error);
    }
    catch (std::exception const& exception)
    {
        logError(op.name, exception.what());
    }
    return -1;
}

} // namespace glm_trt
