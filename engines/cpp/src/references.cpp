#include "references.h"

#include "glm_trt/errors.h"

#include <algorithm>
#include <unordered_set>

namespace glm_trt
{
namespace
{

std::string const kExpert = "{expert}";

void expectTensor(std::string const& place, std::string const& name, TensorFiles const& weights)
{
    if (!weights.has(name))
    {
        throw BundleError(place + ": " + name + " is in no listed file of weights");
    }
}

void checkTensors(std::string const& place, Binding const& binding, TensorFiles const& weights)
{
    for (auto const& name : binding.tensors)
    {
        size_t const mark = name.find(kExpert);
        if (mark == std::string::npos)
        {
            expectTensor(place, name, weights);
            continue;
        }
        auto const experts = binding.arguments.find("experts");
        if (experts == binding.arguments.end())
        {
            throw BundleError(place + ": " + name + " without the argument experts");
        }
        for (int64_t expert = 0; expert < experts->second; ++expert)
        {
            expectTensor(place, std::string(name).replace(mark, kExpert.size(), std::to_string(expert)), weights);
        }
    }
}

} // namespace

void checkListed(std::string const& path, Manifest const& manifest)
{
    auto const expect = [&](std::string const& what, std::string const& file)
    {
        if (manifest.files.count(file) == 0)
        {
            throw BundleError(path + ": " + what + ": " + file + " is not among the listed files");
        }
    };
    expect("bindings", manifest.bindings);
    for (auto const& graph : manifest.graphs)
    {
        expect("graph of " + graph.kind + " in " + nameOf(graph.dtype), graph.file);
    }
    for (auto const& file : manifest.tokenizer)
    {
        expect("tokenizer", file);
    }
    for (auto const& engine : manifest.engines)
    {
        expect("engine of " + engine.kind + " in " + nameOf(engine.dtype) + " for " + engine.target, engine.file);
    }
    std::string found;
    if (manifest.library)
    {
        expect("plugin library", *manifest.library);
        found = manifest.files.find(*manifest.library)->second.sha256;
    }
    for (auto const& engine : manifest.engines)
    {
        if (engine.pluginLibrary && *engine.pluginLibrary != found)
        {
            throw BundleError(path + ": engine " + engine.file + ": built with the plugin library "
                + *engine.pluginLibrary + ", the bundle has " + (found.empty() ? "none" : found));
        }
    }
}

void checkBindings(
    std::string const& path, Manifest const& manifest, Bindings const& bindings, TensorFiles const& weights)
{
    std::unordered_set<std::string> names;
    for (auto const& block : manifest.blocks)
    {
        if (bindings.count(block.name) == 0)
        {
            throw BundleError(path + ": no bindings of block " + block.name);
        }
        names.insert(block.name);
    }
    for (auto const& [name, rows] : bindings)
    {
        if (names.count(name) == 0)
        {
            throw BundleError(path + ": " + name + ": the manifest has no such block");
        }
        for (auto const& binding : rows)
        {
            checkTensors(path + ": " + name + ": " + binding.name, binding, weights);
        }
    }
}

} // namespace glm_trt
