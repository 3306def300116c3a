#include "plugin.h"

#include <cstring>
#include <string>

namespace glm_trt
{
namespace
{

//! The value of a field into `values`, at the attribute's index.
Error readField(nvinfer1::PluginField const& field, Attribute const& attribute, int32_t index, AttributeValues& values)
{
    bool const isText = attribute.kind == AttributeKind::kCHOICE;
    if (field.type != fieldType(attribute) || field.data == nullptr || (!isText && field.length != 1))
    {
        return attribute.kind == AttributeKind::kFLOAT ? "expected one float"
            : isText                                   ? "expected a string"
                                                       : "expected one integer";
    }
    if (!isText)
    {
        void* const target = attribute.kind == AttributeKind::kFLOAT ? static_cast<void*>(&values.floats[index])
                                                                     : &values.integers[index];
        std::memcpy(target, field.data, sizeof(int32_t));
        return {};
    }
    std::string text(static_cast<char const*>(field.data), static_cast<size_t>(field.length));
    text.resize(std::strlen(text.c_str())); // TensorRT may count the end of the string
    std::string expected;
    for (int32_t i = 0; i < attribute.choiceCount; ++i)
    {
        if (text == attribute.choices[i])
        {
            values.integers[index] = i;
            return {};
        }
        expected += (i == 0 ? "" : ", ") + std::string(attribute.choices[i]);
    }
    return "expected one of " + expected + "; found " + text;
}

} // namespace

OperatorCreator::OperatorCreator(Operator const& op)
    : mOperator(op)
{
    for (int32_t i = 0; i < op.attributeCount; ++i)
    {
        mFields.emplace_back(op.attributes[i].name, nullptr, fieldType(op.attributes[i]), 1);
    }
    mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
}

nvinfer1::IPluginV3* OperatorCreator::createPlugin(
    char const* name, nvinfer1::PluginFieldCollection const* fc, nvinfer1::TensorRTPhase phase) noexcept
{
    OperatorPlugin* plugin = nullptr;
    logged(mOperator, [&]() -> Error {
        AttributeValues values;
        bool given[kMaxAttributes]{};
        std::string const layer = name == nullptr ? "" : std::string(name) + ": ";
        std::string builtWith;
        int64_t askedBytes = kUnasked;
        bool saysWorkspace = false;
        for (int32_t f = 0; fc != nullptr && f < fc->nbFields; ++f)
        {
            nvinfer1::PluginField const& field = fc->fields[f];
            if (std::strcmp(field.name, kVersionField) == 0)
            {
                builtWith.assign(static_cast<char const*>(field.data), static_cast<size_t>(field.length));
                continue;
            }
            if (std::strcmp(field.name, kWorkspaceField) == 0)
            {
                if (field.type != nvinfer1::PluginFieldType::kINT64 || field.data == nullptr || field.length != 1)
                {
                    return layer + kWorkspaceField + ": expected one integer of 64 bits";
                }
                std::memcpy(&askedBytes, field.data, sizeof(askedBytes));
                saysWorkspace = true;
                continue;
            }
            for (int32_t i = 0; i < mOperator.attributeCount; ++i)
            {
                if (std::strcmp(field.name, mOperator.attributes[i].name) == 0)
                {
                    Error const error = readField(field, mOperator.attributes[i], i, values);
                    if (!error.empty())
                    {
                        return layer + "attribute " + field.name + ": " + error;
                    }
                    given[i] = true;
                }
            }
        }
        for (int32_t i = 0; i < mOperator.attributeCount; ++i)
        {
            if (!given[i])
            {
                return layer + "attribute " + mOperator.attributes[i].name + ": missing";
            }
        }
        if (phase == nvinfer1::TensorRTPhase::kRUNTIME && builtWith != kVersion)
        {
            return layer + "the engine was built with libglm_trt_plugins " + (builtWith.empty() ? "(none)" : builtWith)
                + ", this is " + kVersion + "; build the engine again";
        }
        // Plugins that did not say it asked for too little.
        if (phase == nvinfer1::TensorRTPhase::kRUNTIME && !saysWorkspace)
        {
            return layer + "the engine does not say what workspace it has; build the engine again";
        }
        plugin = new OperatorPlugin(mOperator, values, askedBytes);
        return {};
    });
    return plugin;
}

nvinfer1::PluginFieldCollection const* OperatorCreator::getFieldNames() noexcept
{
    return &mCollection;
}

char const* OperatorCreator::getPluginName() const noexcept
{
    return mOperator.name;
}

char const* OperatorCreator::getPluginVersion() const noexcept
{
    return kPluginVersion;
}

char const* OperatorCreator::getPluginNamespace() const noexcept
{
    return mOperator.domain;
}

} // namespace glm_trt
