// Runs a plugin as TensorRT does: create, ask, serialise; create again, enqueue. C ABI for ctypes.
//
// NvInferRuntime.h says that workspace is asked for once, at the largest sizes, and holds for smaller
// problems. What it leaves open is here as it is least convenient: another clone is asked than the one
// that is serialised, nothing of the build lives on but the serialised fields, and a context's plugin
// outlives the one that it was attached from.
#include <NvInfer.h>

#include <algorithm>
#include <cstring>
#include <dlfcn.h>
#include <memory>
#include <string>
#include <vector>

namespace
{

struct Tensor
{
    int32_t type; //!< nvinfer1::DataType
    int32_t rank;
    int64_t sizes[8];
    int64_t largest[8]; //!< of the profile
    void* data;
};

struct Field
{
    char const* name;
    nvinfer1::PluginFieldType type;
    int32_t integer;
    float real;
    char const* text;
};

class Logger final : public nvinfer1::ILogger
{
public:
    void log(Severity, char const* message) noexcept override
    {
        text += std::string(message) + "\n";
    }
    std::string text;
};

Logger gLogger;

class Finder final : public nvinfer1::ILoggerFinder
{
public:
    nvinfer1::ILogger* findLogger() override
    {
        return &gLogger;
    }
};

Finder gFinder;
void* gLibrary = nullptr;

nvinfer1::IPluginCreatorV3One* findCreator(char const* name)
{
    using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&);
    auto const getCreators = reinterpret_cast<GetCreators>(dlsym(gLibrary, "getCreators"));
    int32_t count = 0;
    nvinfer1::IPluginCreatorInterface* const* creators = getCreators(count);
    for (int32_t i = 0; i < count; ++i)
    {
        auto* creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
        if (std::strcmp(creator->getPluginName(), name) == 0)
        {
            return creator;
        }
    }
    return nullptr;
}

nvinfer1::Dims dims(int32_t rank, int64_t const* sizes)
{
    nvinfer1::Dims made{};
    made.nbDims = rank;
    std::copy_n(sizes, 8, made.d);
    return made;
}

nvinfer1::PluginTensorDesc describe(Tensor const& tensor)
{
    nvinfer1::PluginTensorDesc description{};
    description.dims = dims(tensor.rank, tensor.sizes);
    description.type = static_cast<nvinfer1::DataType>(tensor.type);
    description.format = nvinfer1::TensorFormat::kLINEAR;
    return description;
}

//! As a profile has it: from the sizes to the largest, and -1 for what is not fixed.
nvinfer1::DynamicPluginTensorDesc describeRange(Tensor const& tensor)
{
    nvinfer1::DynamicPluginTensorDesc description{};
    description.desc = describe(tensor);
    description.min = description.opt = dims(tensor.rank, tensor.sizes);
    description.max = dims(tensor.rank, tensor.largest);
    for (int32_t i = 0; i < tensor.rank; ++i)
    {
        if (tensor.sizes[i] != tensor.largest[i])
        {
            description.desc.dims.d[i] = -1;
        }
    }
    return description;
}

//! What is left of a build: the fields of the plugin, and what it answered.
struct KeptPlugin
{
    nvinfer1::IPluginCreatorV3One* creator{nullptr};
    std::vector<nvinfer1::PluginField> fields;
    std::vector<std::string> names;
    std::vector<std::string> values;
};

size_t elementBytes(nvinfer1::PluginFieldType type)
{
    switch (type)
    {
    case nvinfer1::PluginFieldType::kCHAR: return 1;
    case nvinfer1::PluginFieldType::kINT64: return 8;
    default: return 4;
    }
}

void serialize(nvinfer1::PluginFieldCollection const& collection, KeptPlugin& kept)
{
    auto const count = static_cast<size_t>(collection.nbFields);
    kept.names.reserve(count);
    kept.values.reserve(count);
    for (size_t i = 0; i < count; ++i)
    {
        nvinfer1::PluginField const& field = collection.fields[i];
        size_t const bytes = static_cast<size_t>(field.length) * elementBytes(field.type);
        kept.names.emplace_back(field.name);
        kept.values.emplace_back(static_cast<char const*>(field.data), bytes);
        kept.fields.emplace_back(kept.names.back().c_str(), kept.values.back().data(), field.type, field.length);
    }
}

template <typename Interface>
Interface* capability(nvinfer1::IPluginV3& plugin, nvinfer1::PluginCapabilityType type)
{
    return static_cast<Interface*>(plugin.getCapabilityInterface(type));
}

std::vector<nvinfer1::PluginField> toFields(Field const* fields, int32_t count)
{
    std::vector<nvinfer1::PluginField> given;
    for (int32_t i = 0; i < count; ++i)
    {
        bool const isText = fields[i].type == nvinfer1::PluginFieldType::kCHAR;
        bool const isFloat = fields[i].type == nvinfer1::PluginFieldType::kFLOAT32;
        void const* data = isText ? static_cast<void const*>(fields[i].text)
            : isFloat             ? static_cast<void const*>(&fields[i].real)
                                  : &fields[i].integer;
        auto const length = isText ? static_cast<int32_t>(std::strlen(fields[i].text)) : 1;
        given.emplace_back(fields[i].name, data, fields[i].type, length);
    }
    return given;
}

int fail(char* message, std::string const& text)
{
    std::strncpy(message, (text + "\n" + gLogger.text).c_str(), 2047);
    gLogger.text.clear();
    return 1;
}

} // namespace

extern "C"
{

int harnessOpen(char const* path, char* message)
{
    gLibrary = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (gLibrary == nullptr)
    {
        return fail(message, dlerror());
    }
    using SetLoggerFinder = void (*)(nvinfer1::ILoggerFinder*);
    reinterpret_cast<SetLoggerFinder>(dlsym(gLibrary, "setLoggerFinder"))(&gFinder);
    return 0;
}

void harnessDelete(KeptPlugin* kept)
{
    delete kept;
}

//! Build for the profile of these tensors. Bytes of workspace, or -1; `built` is to be deleted.
int64_t harnessBuild(char const* name, Field const* fields, int32_t fieldCount, Tensor const* tensors,
    int32_t inputCount, int32_t outputCount, KeptPlugin** built, char* message)
{
    auto kept = std::make_unique<KeptPlugin>();
    kept->creator = findCreator(name);
    if (kept->creator == nullptr)
    {
        return -fail(message, std::string("no creator ") + name);
    }
    std::vector<nvinfer1::PluginField> const given = toFields(fields, fieldCount);
    nvinfer1::PluginFieldCollection const collection{fieldCount, given.data()};
    std::unique_ptr<nvinfer1::IPluginV3> const layer(
        kept->creator->createPlugin("layer", &collection, nvinfer1::TensorRTPhase::kBUILD));
    if (layer == nullptr)
    {
        return -fail(message, "createPlugin at build");
    }
    std::unique_ptr<nvinfer1::IPluginV3> const asked(layer->clone());
    auto* build = capability<nvinfer1::IPluginV3OneBuild>(*asked, nvinfer1::PluginCapabilityType::kBUILD);
    std::vector<nvinfer1::DynamicPluginTensorDesc> all;
    std::vector<nvinfer1::DataType> types;
    for (int32_t i = 0; i < inputCount + outputCount; ++i)
    {
        all.push_back(describeRange(tensors[i]));
        types.push_back(all.back().desc.type);
    }
    for (int32_t i = 0; i < inputCount + outputCount; ++i)
    {
        if (!build->supportsFormatCombination(i, all.data(), inputCount, outputCount))
        {
            return -fail(message, "tensor " + std::to_string(i) + " is not supported");
        }
    }
    std::vector<nvinfer1::DataType> outputTypes(static_cast<size_t>(outputCount));
    build->getOutputDataTypes(outputTypes.data(), outputCount, types.data(), inputCount);
    if (!std::equal(outputTypes.begin(), outputTypes.end(), types.begin() + inputCount))
    {
        return -fail(message, "output types differ");
    }
    if (build->configurePlugin(all.data(), inputCount, all.data() + inputCount, outputCount) != 0)
    {
        return -fail(message, "configurePlugin");
    }
    auto const needed = static_cast<int64_t>(
        build->getWorkspaceSize(all.data(), inputCount, all.data() + inputCount, outputCount));
    auto* runtime = capability<nvinfer1::IPluginV3OneRuntime>(*layer, nvinfer1::PluginCapabilityType::kRUNTIME);
    serialize(*runtime->getFieldsToSerialize(), *kept);
    *built = kept.release();
    return needed;
}

//! Leave `field` out of what was kept, or give it another text.
void harnessChange(KeptPlugin* kept, char const* field, char const* text)
{
    for (size_t i = 0; i < kept->fields.size(); ++i)
    {
        if (kept->names[i] == field && text == nullptr)
        {
            kept->fields.erase(kept->fields.begin() + static_cast<ptrdiff_t>(i));
            return;
        }
        if (kept->names[i] == field)
        {
            kept->fields[i].data = text;
            kept->fields[i].length = static_cast<int32_t>(std::strlen(text));
        }
    }
}

//! Queue a plugin that was kept on these tensors on a stream: 0, or -1.
int64_t harnessRun(KeptPlugin* kept, Tensor const* tensors, int32_t inputCount, int32_t outputCount, void* workspace,
    void* stream, char* message)
{
    nvinfer1::PluginFieldCollection const serialized{static_cast<int32_t>(kept->fields.size()), kept->fields.data()};
    std::unique_ptr<nvinfer1::IPluginV3> plugin(
        kept->creator->createPlugin("layer", &serialized, nvinfer1::TensorRTPhase::kRUNTIME));
    if (plugin == nullptr)
    {
        return -fail(message, "createPlugin at run time");
    }
    auto* engines = capability<nvinfer1::IPluginV3OneRuntime>(*plugin, nvinfer1::PluginCapabilityType::kRUNTIME);
    std::unique_ptr<nvinfer1::IPluginV3> const context(engines->attachToContext(nullptr));
    plugin.reset();
    auto* runtime = capability<nvinfer1::IPluginV3OneRuntime>(*context, nvinfer1::PluginCapabilityType::kRUNTIME);
    std::vector<nvinfer1::PluginTensorDesc> descriptions;
    std::vector<void*> addresses;
    for (int32_t i = 0; i < inputCount + outputCount; ++i)
    {
        descriptions.push_back(describe(tensors[i]));
        addresses.push_back(tensors[i].data);
    }
    int32_t status
        = runtime->onShapeChange(descriptions.data(), inputCount, descriptions.data() + inputCount, outputCount);
    if (status == 0)
    {
        status = runtime->enqueue(descriptions.data(), descriptions.data() + inputCount, addresses.data(),
            addresses.data() + inputCount, workspace, static_cast<cudaStream_t>(stream));
    }
    return status == 0 ? 0 : -fail(message, "enqueue: " + std::to_string(status));
}

} // extern "C"
