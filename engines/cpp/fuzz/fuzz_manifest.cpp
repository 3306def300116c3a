// Manifests with everything but their digest, which no mutation would get past; and the digest itself.
#include "fuzz_target.h"
#include "glm_trt/errors.h"
#include "manifest.h"

namespace
{

bool accepted = false;

std::string const kDigest(64, 'a');

} // namespace

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size)
{
    accepted = false;
    std::string const text(reinterpret_cast<char const*>(data), size);
    try
    {
        glm_trt::parseManifest("manifest.json", text);
    }
    catch (glm_trt::BundleError const&)
    {
    }
    try
    {
        glm_trt::readManifestValues("manifest.json", glm_trt::parseJson(text));
        accepted = true;
    }
    catch (glm_trt::BundleError const&)
    {
    }
    catch (glm_trt::NotJson const&)
    {
    }
    catch (glm_trt::RepeatedName const&)
    {
    }
    return 0;
}

std::vector<std::string> fuzzSeeds()
{
    std::string const digest = '"' + kDigest + '"';
    return {R"({"format": "glm-trt bundle", "format_version": 6, "sha256": )" + digest + R"(, "key": )" + digest
        + R"(, "versions": {"onnx": "1"}, "config": {"vocab_size": 5}, "model": {"vocab_size": 5, "hidden_size": 4,)"
          R"( "rotary_width": 2, "index_topk": 0, "eos_token_ids": [0, 1]}, "states": {"dense": [{"name": "kv_cache",)"
          R"( "unit": "page", "shape": [1, 16, 8], "position_axis": 1, "dtype": null}]}, "dtypes": ["float32"], "max_seq_len": 16,)"
          R"( "materialized": false, "blocks": [{"name": "layer.0", "kind": "dense", "layer": 0}], "graphs": [{"kind":)"
          R"( "dense", "dtype": "float32", "file": "graphs/float32/dense.onnx"}], "bindings": "bindings.json",)"
          R"( "checkpoint": {"directory": "../c", "dtype": "float32", "files": [{"file": "model.safetensors", "bytes":)"
          R"( 10, "header_sha256": )"
        + digest + R"(, "sample_sha256": )" + digest + R"(, "sha256": null}]}, "tokenizer": ["tokenizer/a.json"], "library": null,)"
        + R"( "files": {"bindings.json": {"bytes": 3, "sha256": )" + digest
        + R"(}}, "engines": [{"backend": "tensorrt-rtx", "backend_version": "1.7", "target": "sm89", "kind": "dense",)"
          R"( "dtype": "float32", "file": "engines/a.plan", "key": )"
        + digest + R"(, "graph_sha256": )" + digest
        + R"(, "bytes": 1, "seconds": 0.5, "peak_memory_bytes": 0, "layers": 1, "profiles": {}, "plugins": ["X"],)"
          R"( "plugin_library": null}]})"};
}

bool wasAccepted()
{
    return accepted;
}
