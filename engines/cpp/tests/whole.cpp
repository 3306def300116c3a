// The library as a user has it, on the strict driver of tests/stand_ins and a stand-in for TensorRT (late_tensorrt.cpp).
//
//     whole                    everything
//     whole failing            load and a sequence must find no memory
//     whole write DIRECTORY    a bundle for glm-trt-run; prints what follows on the tokens 1, 2, 3
#include "check.h"
#include "glm_trt/glm_trt.h"
#include "glm_trt/runtime.h"
#include "small_model.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <thread>
#include <unistd.h>

using namespace glm_trt;
using namespace glm_trt::test;

namespace
{

int64_t best(std::vector<float> const& logits)
{
    return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

//! Greedy, to the end of what the bundle holds.
std::vector<int64_t> following(std::vector<int64_t> ids)
{
    size_t const prompt = ids.size();
    while (ids.size() <= kCapacity && (ids.size() == prompt || ids.back() != 6))
    {
        ids.push_back(best(expected(ids)));
    }
    return {ids.begin() + static_cast<long>(prompt), ids.end()};
}

//! A sequence of chunks and steps, saved and gone on with in another one that outlives the runtime.
void runAll(fs::path const& place, std::atomic<int>& wrong)
{
    auto const ids = tokens(14);
    std::optional<Runtime> runtime = Runtime::load(place.string());
    Sequence sequence = runtime->sequence();
    wrong += !equal(sequence.prefill(part(ids, 0, 8)), expected(part(ids, 0, 8)));
    for (size_t i = 8; i < 11; ++i)
    {
        wrong += !equal(sequence.decode(ids[i]), expected(part(ids, 0, i + 1)));
    }
    wrong += !sequence.usesGraph();
    Sequence other = runtime->sequence();
    other.restore(sequence.save());
    runtime.reset();
    for (size_t i = 11; i < ids.size(); ++i)
    {
        wrong += !equal(other.decode(ids[i]), expected(part(ids, 0, i + 1)));
        wrong += !equal(sequence.decode(ids[i]), expected(part(ids, 0, i + 1)));
    }
    sequence = std::move(other); // and the first is closed
    sequence.reset();
    wrong += !equal(sequence.prefill({4}), expected({4}));
}

//! Two bundles, each in a thread of its own.
void testTwoBundles(fs::path const& place)
{
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (char const* name : {"a", "b"})
    {
        writeFiles(place / name);
        threads.emplace_back(
            [&, name] { CHECK(thrownBy<std::exception>([&] { runAll(place / name, wrong); }) == ""); });
    }
    for (auto& thread : threads)
    {
        thread.join();
    }
    CHECK(wrong == 0);
}

//! Through the C interface, each call from another thread; the runtime is freed before its sequence.
void testC(fs::path const& place)
{
    glm_trt_runtime* runtime = nullptr;
    glm_trt_sequence* sequence = nullptr;
    glm_trt_options options{};
    options.size = sizeof options;
    int64_t const prompt[]{1, 2, 3};
    std::vector<int64_t> found(32);
    int64_t made = 0;
    auto const elsewhere = [](auto work)
    {
        int status = -1;
        std::thread([&] { status = work(); }).join();
        CHECK(status == 0);
    };
    elsewhere([&] { return glm_trt_load(place.c_str(), nullptr, nullptr, &runtime); });
    elsewhere([&] { return glm_trt_sequence_new(runtime, &sequence); });
    elsewhere([&] { return glm_trt_default_options(&options); });
    elsewhere([&] { return glm_trt_append(sequence, prompt, 2, nullptr); });
    elsewhere([&] { return glm_trt_sequence_reset(sequence); });
    elsewhere([&] { return glm_trt_free(runtime), 0; });
    elsewhere(
        [&] { return glm_trt_generate(sequence, prompt, 3, &options, nullptr, nullptr, found.data(), &made); });
    found.resize(static_cast<size_t>(made));
    CHECK(found == following({1, 2, 3}));
    options.size = 56; // of a caller whose struct is another
    CHECK(glm_trt_generate(sequence, prompt, 3, &options, nullptr, nullptr, found.data(), &made) == 2);
    CHECK(std::string(glm_trt_last_error()).find("glm_trt_options: size 56: expected 64") == 0);
    elsewhere([&] { return glm_trt_sequence_free(sequence), 0; });
}

} // namespace

int main(int count, char** arguments)
{
    std::string const mode = count > 1 ? arguments[1] : "";
    if (mode == "write" && count > 2)
    {
        writeFiles(arguments[2]);
        for (int64_t const token : following({1, 2, 3}))
        {
            std::printf("%lld ", static_cast<long long>(token));
        }
        return 0;
    }
    auto const place = fs::temp_directory_path() / ("glm_trt_whole_" + std::to_string(::getpid()));
    try
    {
        if (mode == "failing")
        {
            writeFiles(place);
            std::string const said
                = thrownBy<MissingCapabilityError>([&] { Runtime::load(place.string()).sequence(); });
            CHECK(said.find("the GPU has too little memory: ") == 0);
        }
        else
        {
            testTwoBundles(place);
            testC(place / "a");
        }
    }
    catch (std::exception const& error)
    {
        std::fprintf(stderr, "%s\n", error.what());
        ++failures();
    }
    fs::remove_all(place);
    return checksFailed();
}
