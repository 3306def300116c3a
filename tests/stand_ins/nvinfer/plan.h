// A stand-in's plan: magic, the size of a JSON header, the header, and then the ONNX models of its segments.
#pragma once

#include <NvInferRuntime.h>
#include <cstddef>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace stand_in
{

using Json = nlohmann::json;
using Shape = std::vector<int64_t>;

constexpr char kMagic[] = "glm-trt stand-in plan 1\n";

struct Tensor
{
    std::string name;
    bool isInput;
    nvinfer1::DataType type;
    Shape shape;           // -1: open
    std::string aliasedTo; // the input whose memory this output may have; else empty
};

//! A value that nodes make, on a profile: its sizes at both ends, and where in the scratch it lies.
struct Value
{
    nvinfer1::DataType type;
    Shape least;
    Shape most;
    int64_t offset;
};

struct Profile
{
    std::map<std::string, std::vector<Shape>> shapes; // of open inputs: least, best, most
    std::map<std::string, Value> values;
    std::vector<int64_t> workspaces; // of the nodes: 0 for segments
    int64_t workspaceOffset; // in the scratch, for all plugins in turn
    int64_t scratch;
};

struct Field
{
    std::string name;
    nvinfer1::PluginFieldType type;
    int32_t length;
    std::string data;
};

//! Standard operators, run as one ONNX model; or a plugin.
struct Node
{
    std::vector<std::string> inputs;
    std::vector<std::string> outputs;
    size_t offset{0}; // of the model, behind the header
    size_t size{0};
    std::string plugin; // empty: a segment
    std::string space;
    std::string version;
    std::vector<Field> fields;
};

struct Plan
{
    std::string flavour;
    std::string version;
    std::vector<Tensor> io;
    std::vector<Profile> profiles;
    std::vector<Node> nodes;
    std::string models;

    //! Throws std::runtime_error for what is no plan.
    Plan(char const* data, size_t size);

    //! nullptr where there is none.
    Tensor const* find(std::string const& name) const;
};

size_t bytesOf(nvinfer1::DataType type, Shape const& shape);

//! As bytes are in JSON.
std::string fromHex(std::string const& text);
std::string toHex(void const* data, size_t size);

} // namespace stand_in
