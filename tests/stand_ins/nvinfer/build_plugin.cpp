// A plugin at build time: asked for types, shapes and workspace, and serialised.
//
// What NvInferRuntime.h leaves open is here as it is least convenient: another clone is asked than the one that is
// serialised, and workspace is asked for once a profile, at its largest sizes (IPluginV3OneBuild::getWorkspaceSize).
#include "plan.h"
#include "registry.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace stand_in
{
namespace
{

using namespace nvinfer1;

class Dimension final : public IDimensionExpr, public apiv::VDimensionExpr
{
public:
    explicit Dimension(int64_t value)
        : mValue(value)
    {
        IDimensionExpr::mImpl = this;
    }
    bool isConstant() const override
    {
        return true;
    }
    int64_t getConstantValue() const override
    {
        return mValue;
    }
    bool isSizeTensor() const override
    {
        return false;
    }

private:
    int64_t mValue;
};

//! Of sizes that are known: shapes are asked for at each end of a profile.
class Dimensions final : public IExprBuilder, public apiv::VExprBuilder
{
public:
    Dimensions()
    {
        IExprBuilder::mImpl = this;
    }
    IDimensionExpr const* constant(int64_t value) override
    {
        return &mMade.emplace_back(value);
    }
    IDimensionExpr const* operation(DimensionOperation what, IDimensionExpr const& a, IDimensionExpr const& b) override
    {
        return constant(compute(what, a.getConstantValue(), b.getConstantValue()));
    }
    IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) override
    {
        throw std::runtime_error("sizes that a plugin computes are not modelled");
    }

private:
    static int64_t compute(DimensionOperation what, int64_t a, int64_t b)
    {
        switch (what)
        {
        case DimensionOperation::kSUM: return a + b;
        case DimensionOperation::kPROD: return a * b;
        case DimensionOperation::kMAX: return std::max(a, b);
        case DimensionOperation::kMIN: return std::min(a, b);
        case DimensionOperation::kSUB: return a - b;
        case DimensionOperation::kEQUAL: return a == b ? 1 : 0;
        case DimensionOperation::kLESS: return a < b ? 1 : 0;
        case DimensionOperation::kFLOOR_DIV: return a / b;
        case DimensionOperation::kCEIL_DIV: return (a + b - 1) / b;
        }
        throw std::runtime_error("an operation on sizes that is not modelled");
    }

    std::deque<Dimension> mMade;
};

Dims dims(Shape const& shape)
{
    Dims made{};
    made.nbDims = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), made.d);
    return made;
}

template <typename Interface>
Interface& capability(IPluginV3& plugin, PluginCapabilityType type)
{
    auto* const found = static_cast<Interface*>(plugin.getCapabilityInterface(type));
    if (found == nullptr)
    {
        throw std::runtime_error("the plugin lacks a capability");
    }
    return *found;
}

size_t elementBytes(PluginFieldType type)
{
    switch (type)
    {
    case PluginFieldType::kCHAR: return 1;
    case PluginFieldType::kINT64: return 8;
    default: return 4;
    }
}

//! Sizes of the outputs for these inputs.
std::vector<Shape> outputShapes(IPluginV3OneBuild& build, std::vector<Shape> const& inputs)
{
    Dimensions builder;
    std::vector<DimsExprs> given(inputs.size());
    for (size_t i = 0; i < inputs.size(); ++i)
    {
        given[i].nbDims = static_cast<int32_t>(inputs[i].size());
        for (size_t j = 0; j < inputs[i].size(); ++j)
        {
            given[i].d[j] = builder.constant(inputs[i][j]);
        }
    }
    std::vector<DimsExprs> found(static_cast<size_t>(build.getNbOutputs()));
    if (build.getOutputShapes(given.data(), static_cast<int32_t>(given.size()), nullptr, 0, found.data(),
            static_cast<int32_t>(found.size()), builder)
        != 0)
    {
        throw std::runtime_error("getOutputShapes failed");
    }
    std::vector<Shape> shapes;
    for (auto const& of : found)
    {
        Shape shape;
        for (int32_t i = 0; i < of.nbDims; ++i)
        {
            shape.push_back(of.d[i]->getConstantValue());
        }
        shapes.push_back(shape);
    }
    return shapes;
}

DynamicPluginTensorDesc describe(DataType type, Shape const& least, Shape const& most)
{
    DynamicPluginTensorDesc made{};
    made.desc.type = type;
    made.desc.format = TensorFormat::kLINEAR;
    made.desc.dims = dims(least);
    made.min = made.desc.dims;
    made.opt = made.max = dims(most);
    for (size_t i = 0; i < least.size(); ++i)
    {
        made.desc.dims.d[i] = least[i] == most[i] ? least[i] : -1;
    }
    return made;
}

//! Types and formats of all tensors of a profile, each accepted in turn; bytes of workspace.
int64_t configure(IPluginV3OneBuild& build, std::vector<DynamicPluginTensorDesc> const& all, size_t inputCount)
{
    auto const inputs = static_cast<int32_t>(inputCount);
    auto const outputs = static_cast<int32_t>(all.size() - inputCount);
    for (int32_t i = 0; i < inputs + outputs; ++i)
    {
        if (!build.supportsFormatCombination(i, all.data(), inputs, outputs))
        {
            throw std::runtime_error("could not find any supported formats consistent with input/output data types"
                                     " (tensor " + std::to_string(i) + ")");
        }
    }
    if (build.configurePlugin(all.data(), inputs, all.data() + inputs, outputs) != 0)
    {
        throw std::runtime_error("configurePlugin failed");
    }
    return static_cast<int64_t>(build.getWorkspaceSize(all.data(), inputs, all.data() + inputs, outputs));
}

Json serialized(PluginFieldCollection const& collection)
{
    Json fields = Json::array();
    for (int32_t i = 0; i < collection.nbFields; ++i)
    {
        PluginField const& field = collection.fields[i];
        size_t const bytes = static_cast<size_t>(field.length) * elementBytes(field.type);
        fields.push_back({{"name", field.name}, {"type", static_cast<int32_t>(field.type)}, {"length", field.length},
            {"data", toHex(field.data, bytes)}});
    }
    return fields;
}

//! Of the attributes given, those that the creator asks for (its getFieldNames): no others arrive.
struct Given
{
    Given(IPluginCreatorV3One& creator, Json const& attributes)
    {
        PluginFieldCollection const& names = *creator.getFieldNames();
        for (int32_t i = 0; i < names.nbFields; ++i)
        {
            for (auto const& attribute : attributes)
            {
                if (attribute.at("name").get<std::string>() == names.fields[i].name)
                {
                    data.push_back(fromHex(attribute.at("data").get<std::string>()));
                    auto const type = static_cast<PluginFieldType>(attribute.at("type").get<int32_t>());
                    auto const length = static_cast<int32_t>(data.back().size() / elementBytes(type));
                    fields.emplace_back(names.fields[i].name, data.back().data(), type, length);
                }
            }
        }
    }

    std::deque<std::string> data;
    std::vector<PluginField> fields;
};

} // namespace

std::string buildPlugin(Registry& registry, std::string const& request)
{
    Json const asked = Json::parse(request);
    auto* const creator = registry.find(asked.at("plugin").get<std::string>(), asked.at("version").get<std::string>(),
        asked.at("namespace").get<std::string>());
    if (creator == nullptr)
    {
        throw std::runtime_error(kNotFound);
    }
    Given const given(*creator, asked.at("attributes"));
    PluginFieldCollection const collection{static_cast<int32_t>(given.fields.size()), given.fields.data()};
    std::unique_ptr<IPluginV3> const layer(creator->createPlugin("layer", &collection, TensorRTPhase::kBUILD));
    if (layer == nullptr)
    {
        throw std::runtime_error("createPlugin gives none");
    }
    std::unique_ptr<IPluginV3> const clone(layer->clone());
    auto& build = capability<IPluginV3OneBuild>(*clone, PluginCapabilityType::kBUILD);
    std::vector<DataType> types;
    for (auto const& type : asked.at("types"))
    {
        types.push_back(static_cast<DataType>(type.get<int32_t>()));
    }
    std::vector<DataType> made(static_cast<size_t>(build.getNbOutputs()));
    if (build.getOutputDataTypes(
            made.data(), static_cast<int32_t>(made.size()), types.data(), static_cast<int32_t>(types.size()))
        != 0)
    {
        throw std::runtime_error("getOutputDataTypes failed");
    }
    Json answer = {{"types", made}, {"profiles", Json::array()}, {"fields", Json::array()}};
    for (auto const& profile : asked.at("profiles"))
    {
        auto const least = profile.at("least").get<std::vector<Shape>>();
        auto const most = profile.at("most").get<std::vector<Shape>>();
        auto const leastOut = outputShapes(build, least);
        auto const mostOut = outputShapes(build, most);
        std::vector<DynamicPluginTensorDesc> all;
        for (size_t i = 0; i < least.size(); ++i)
        {
            all.push_back(describe(types[i], least[i], most[i]));
        }
        for (size_t i = 0; i < made.size(); ++i)
        {
            all.push_back(describe(made[i], leastOut[i], mostOut[i]));
        }
        int64_t const workspace = configure(build, all, least.size());
        answer["profiles"].push_back({{"least", leastOut}, {"most", mostOut}, {"workspace", workspace}});
    }
    auto& runtime = capability<IPluginV3OneRuntime>(*layer, PluginCapabilityType::kRUNTIME);
    answer["fields"] = serialized(*runtime.getFieldsToSerialize());
    return answer.dump();
}

} // namespace stand_in
