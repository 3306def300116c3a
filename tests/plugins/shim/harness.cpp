// Runs a plugin as TensorRT does: create, ask, serialise, create again, enqueue. C ABI for ctypes.
#include <NvInfer.h>

#include <cstring>
#include <dlfcn.h>
#include <string>
#include <vector>

namespace
{

struct Tensor
{
    int32_t type; //!< nvinfer1::DataType
    int32_t rank;
    int64_t sizes[8];
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

nvinfer1::DynamicPluginTensorDesc describe(Tensor const& tensor)
{
    nvinfer1::DynamicPluginTensorDesc description{};
    nvinfer1::Dims dims{};
    dims.nbDims = tensor.rank;
    std::memcpy(dims.d, tensor.sizes, sizeof(tensor.sizes));
    description.desc.dims = dims;
    description.desc.type = static_cast<nvinfer1::DataType>(tensor.type);
    description.desc.format = nvinfer1::TensorFormat::kLINEAR;
    description.min = description.max = description.opt = dims;
    return description;
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

//! Bytes of workspace for these shapes, or -1. Also checks formats and output types.
int64_t harnessRun(char const* name, Field const* fields, int32_t fieldCount, Tensor const* tensors, int32_t inputCount,
    int32_t outputCount, void* workspace, int64_t workspaceBytes, char const* version, char* message)
{
    auto* creator = findCreator(name);
    if (creator == nullptr)
    {
        return -fail(message, std::string("no creator ") + name);
    }
    std::vector<nvinfer1::PluginField> given;
    for (int32_t i = 0; i < fieldCount; ++i)
    {
        bool const isText = fields[i].type == nvinfer1::PluginFieldType::kCHAR;
        bool const isFloat = fields[i].type == nvinfer1::PluginFieldType::kFLOAT32;
        void const* data = isText ? static_cast<void const*>(fields[i].text)
            : isFloat             ? static_cast<void const*>(&fields[i].real)
                                  : &fields[i].integer;
        auto const length = isText ? static_cast<int32_t>(std::strlen(fields[i].text)) : 1;
        given.emplace_back(fields[i].name, data, fields[i].type, length);
    }
    nvinfer1::PluginFieldCollection const collection{fieldCount, given.data()};
    auto* atBuild = creator->createPlugin("layer", &collection, nvinfer1::TensorRTPhase::kBUILD);
    if (atBuild == nullptr)
    {
        return -fail(message, "createPlugin at build");
    }
    auto* build = static_cast<nvinfer1::IPluginV3OneBuild*>(
        atBuild->getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
    std::vector<nvinfer1::DynamicPluginTensorDesc> all;
    std::vector<nvinfer1::DataType> types;
    for (int32_t i = 0; i < inputCount + outputCount; ++i)
    {
        all.push_back(describe(tensors[i]));
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
    if (workspace == nullptr || needed > workspaceBytes)
    {
        delete atBuild;
        return needed;
    }
    auto* core = static_cast<nvinfer1::IPluginV3OneRuntime*>(
        atBuild->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
    nvinfer1::PluginFieldCollection const* stored = core->getFieldsToSerialize();
    std::vector<nvinfer1::PluginField> kept(stored->fields, stored->fields + stored->nbFields);
    if (version != nullptr)
    {
        for (auto& field : kept)
        {
            if (std::strcmp(field.name, "glm_trt_version") == 0)
            {
                field.data = version;
                field.length = static_cast<int32_t>(std::strlen(version));
            }
        }
    }
    nvinfer1::PluginFieldCollection const serialised{static_cast<int32_t>(kept.size()), kept.data()};
    auto* plugin = creator->createPlugin("layer", &serialised, nvinfer1::TensorRTPhase::kRUNTIME);
    if (plugin == nullptr)
    {
        return -fail(message, "createPlugin at run time");
    }
    auto* first = static_cast<nvinfer1::IPluginV3OneRuntime*>(
        plugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
    auto* context = first->attachToContext(nullptr);
    auto* runtime = static_cast<nvinfer1::IPluginV3OneRuntime*>(
        context->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
    std::vector<nvinfer1::PluginTensorDesc> descriptions;
    std::vector<void*> addresses;
    for (int32_t i = 0; i < inputCount + outputCount; ++i)
    {
        descriptions.push_back(all[static_cast<size_t>(i)].desc);
        addresses.push_back(tensors[i].data);
    }
    int32_t status
        = runtime->onShapeChange(descriptions.data(), inputCount, descriptions.data() + inputCount, outputCount);
    if (status == 0)
    {
        status = runtime->enqueue(descriptions.data(), descriptions.data() + inputCount, addresses.data(),
            addresses.data() + inputCount, workspace, nullptr);
    }
    delete context;
    delete plugin;
    delete atBuild;
    return status == 0 ? needed : -fail(message, "enqueue: " + std::to_string(status));
}

} // extern "C"
