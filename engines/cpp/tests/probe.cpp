// What the Python tests ask of the library: requests on stdin, one a line, an answer for each on stdout.
//
//     probe verdicts             safetensors, manifest, schema or bindings PATH | bundle DIRECTORY
//     probe bind BUNDLE DTYPE    prints block, input and SHA-256 of every bound buffer
//     probe convert FILE DTYPE   writes the tensor x of a safetensors file in another dtype
//     probe sample CASES         a file of cases (tests/engines/cpp/test_sampling_cpp.py), prints tokens
#include "bindings.h"
#include "bundle.h"
#include "convert.h"
#include "file.h"
#include "glm_trt/errors.h"
#include "manifest.h"
#include "sampling.h"
#include "sha256.h"

#include <cstring>
#include <iostream>

using namespace glm_trt;

namespace
{

void verdict(std::string const& kind, std::string const& path)
{
    try
    {
        if (kind == "safetensors")
        {
            SafetensorsFile file(path);
        }
        else if (kind == "manifest")
        {
            parseManifest(path, FileReader(path).rest());
        }
        else if (kind == "schema")
        {
            readManifestValues(path, parseJson(FileReader(path).rest()));
        }
        else if (kind == "bindings")
        {
            parseBindings(path, FileReader(path).rest());
        }
        else
        {
            Bundle::open(path);
        }
        std::cout << "ok\n";
    }
    catch (CheckpointError const& error)
    {
        std::cout << "CheckpointError: " << Json(error.what()).dump() << "\n";
    }
    catch (BundleError const& error)
    {
        std::cout << "BundleError: " << Json(error.what()).dump() << "\n";
    }
}

void bindAll(std::string const& directory, std::string const& dtype)
{
    Bundle const bundle = Bundle::open(directory);
    std::vector<std::byte> buffer;
    for (auto const* blocks : {&bundle.blocks(), &bundle.predictionBlocks()})
    {
        for (auto const& block : *blocks)
        {
            for (auto const& binding : block.bindings)
            {
                Dtype const of = dtypeOf(dtype).value();
                buffer.assign(boundBytes(binding, of), std::byte{0xA5});
                bindInto(binding, bundle.weights(), of, buffer.data());
                Sha256 digest;
                digest.update(buffer.data(), buffer.size());
                std::cout << block.name << " " << binding.name << " " << digest.hex() << "\n";
            }
        }
    }
}

void convertOne(std::string const& path, std::string const& dtype)
{
    SafetensorsFile const file(path);
    TensorView const tensor = file.view(file.tensors().at("x"));
    Dtype const to = dtypeOf(dtype).value();
    size_t const count = tensor.bytes / sizeOf(tensor.dtype);
    std::vector<std::byte> out(count * sizeOf(to));
    convert(tensor, 0, count, to, out.data());
    std::cout.write(reinterpret_cast<char const*>(out.data()), static_cast<std::streamsize>(out.size()));
}

template <typename T>
T take(char const*& next)
{
    T value;
    std::memcpy(&value, next, sizeof value);
    next += sizeof value;
    return value;
}

void sampleAll(std::string const& path)
{
    std::string const data = FileReader(path).rest();
    for (char const *next = data.data(), *end = next + data.size(); next < end;)
    {
        Sampling sampling;
        sampling.temperature = take<double>(next);
        sampling.topK = take<int64_t>(next);
        sampling.topP = take<double>(next);
        sampling.minP = take<double>(next);
        sampling.repetitionPenalty = take<double>(next);
        sampling.seed = take<uint64_t>(next);
        sampling.check();
        auto const position = take<int64_t>(next);
        std::vector<int64_t> occurred(static_cast<size_t>(take<int64_t>(next)));
        std::vector<float> logits(static_cast<size_t>(take<int64_t>(next)));
        for (auto& id : occurred)
        {
            id = take<int64_t>(next);
        }
        for (auto& logit : logits)
        {
            logit = take<float>(next);
        }
        auto const vocab = static_cast<int64_t>(logits.size());
        int64_t const token = choose(logits.data(), vocab, sampling, position, occurred);
        auto const [chosen, top] = logProbabilities(logits.data(), vocab, token, 2);
        std::cout.precision(17);
        std::cout << token << " " << chosen << " " << top[1].first << " " << top[1].second << "\n";
    }
}

} // namespace

int main(int count, char** arguments)
try
{
    std::string const mode = count > 1 ? arguments[1] : "";
    if (mode == "verdicts")
    {
        for (std::string kind, path; std::cin >> kind >> path;)
        {
            verdict(kind, path);
        }
    }
    else if (mode == "bind" && count == 4)
    {
        bindAll(arguments[2], arguments[3]);
    }
    else if (mode == "convert" && count == 4)
    {
        convertOne(arguments[2], arguments[3]);
    }
    else if (mode == "sample" && count == 3)
    {
        sampleAll(arguments[2]);
    }
    else
    {
        std::cerr << "probe: see the head of tests/probe.cpp\n";
        return 2;
    }
    return 0;
}
catch (Error const& error)
{
    std::cerr << "probe: error: " << error.what() << "\n";
    return error.exitCode();
}
