#include "plan.h"

#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace stand_in
{
namespace
{

Value valueOf(Json const& json)
{
    return {static_cast<nvinfer1::DataType>(json.at("dtype").get<int32_t>()), json.at("least").get<Shape>(),
        json.at("most").get<Shape>(), json.at("offset").get<int64_t>()};
}

Node nodeOf(Json const& json)
{
    Node node;
    node.inputs = json.at("inputs").get<std::vector<std::string>>();
    node.outputs = json.at("outputs").get<std::vector<std::string>>();
    if (!json.contains("plugin"))
    {
        node.offset = json.at("offset").get<size_t>();
        node.size = json.at("size").get<size_t>();
        return node;
    }
    node.plugin = json.at("plugin").get<std::string>();
    node.space = json.at("namespace").get<std::string>();
    node.version = json.at("version").get<std::string>();
    for (auto const& field : json.at("fields"))
    {
        node.fields.push_back({field.at("name").get<std::string>(),
            static_cast<nvinfer1::PluginFieldType>(field.at("type").get<int32_t>()), field.at("length").get<int32_t>(),
            fromHex(field.at("data").get<std::string>())});
    }
    return node;
}

Profile profileOf(Json const& json)
{
    Profile profile;
    profile.shapes = json.at("shapes").get<std::map<std::string, std::vector<Shape>>>();
    profile.workspaces = json.at("workspaces").get<std::vector<int64_t>>();
    profile.workspaceOffset = json.at("workspace_offset").get<int64_t>();
    profile.scratch = json.at("scratch").get<int64_t>();
    for (auto const& [name, value] : json.at("values").items())
    {
        profile.values[name] = valueOf(value);
    }
    return profile;
}

} // namespace

Plan::Plan(char const* data, size_t size)
{
    constexpr size_t kStart = sizeof(kMagic) - 1 + 8;
    uint64_t header = 0;
    if (size < kStart || std::memcmp(data, kMagic, sizeof(kMagic) - 1) != 0)
    {
        throw std::runtime_error("Magic tag does not match: this is no plan");
    }
    std::memcpy(&header, data + kStart - 8, 8);
    if (header > size - kStart)
    {
        throw std::runtime_error("the plan is cut off");
    }
    Json const json = Json::parse(data + kStart, data + kStart + header);
    flavour = json.at("flavour").get<std::string>();
    version = json.at("version").get<std::string>();
    for (auto const& tensor : json.at("io"))
    {
        io.push_back({tensor.at("name").get<std::string>(), tensor.at("is_input").get<bool>(),
            static_cast<nvinfer1::DataType>(tensor.at("dtype").get<int32_t>()), tensor.at("shape").get<Shape>(),
            tensor.value("aliased_to", std::string())});
    }
    for (auto const& profile : json.at("profiles"))
    {
        profiles.push_back(profileOf(profile));
    }
    for (auto const& node : json.at("nodes"))
    {
        nodes.push_back(nodeOf(node));
    }
    models.assign(data + kStart + header, size - kStart - header);
}

Tensor const* Plan::find(std::string const& name) const
{
    for (auto const& tensor : io)
    {
        if (tensor.name == name)
        {
            return &tensor;
        }
    }
    return nullptr;
}

size_t bytesOf(nvinfer1::DataType type, Shape const& shape)
{
    using nvinfer1::DataType;
    size_t bytes = 1;
    switch (type)
    {
    case DataType::kINT64: bytes = 8; break;
    case DataType::kFLOAT:
    case DataType::kINT32: bytes = 4; break;
    case DataType::kHALF:
    case DataType::kBF16: bytes = 2; break;
    default: break;
    }
    for (int64_t const size : shape)
    {
        bytes *= static_cast<size_t>(size);
    }
    return bytes;
}

std::string fromHex(std::string const& text)
{
    std::string bytes;
    for (size_t i = 0; i + 1 < text.size(); i += 2)
    {
        bytes += static_cast<char>(std::stoi(text.substr(i, 2), nullptr, 16));
    }
    return bytes;
}

std::string toHex(void const* data, size_t size)
{
    std::string text;
    for (size_t i = 0; i < size; ++i)
    {
        unsigned const byte = static_cast<unsigned char const*>(data)[i];
        text += "0123456789abcdef"[byte / 16];
        text += "0123456789abcdef"[byte % 16];
    }
    return text;
}

} // namespace stand_in
