// Passes over a bundle's blocks: engines of the test's own (small_model.h) on a device that does work late.
#include "check.h"
#include "model.h"
#include "small_model.h"

#include <atomic>
#include <thread>
#include <unistd.h>

using namespace glm_trt;
using namespace glm_trt::test;

namespace
{

constexpr auto kDtype = Dtype::kFloat32;

//! A bundle from opening to tokens; `ready` counts those that begin together.
void runOne(fs::path const& place, std::atomic<int>& ready, std::atomic<int>& wrong)
{
    auto const ids = tokens(12);
    ++ready;
    while (ready.load() < 2)
    {
        std::this_thread::yield();
    }
    try
    {
        Bundle const bundle = Bundle::open(place);
        HostDevice device;
        DeviceWeights const weights(bundle, Dtype::kFloat32, device);
        Model model(bundle, makeEngines(device), weights, "float32", device);
        model.append(part(ids, 0, 7));
        for (size_t i = 7; i < ids.size(); ++i)
        {
            wrong += !equal(model.append({ids[i]}), expected(part(ids, 0, i + 1)));
        }
    }
    catch (std::exception const& error)
    {
        std::fprintf(stderr, "%s\n", error.what());
        ++wrong;
    }
}

//! Each in a thread of its own, and the first of this process: what a race detector is to watch.
void testTwoBundles(fs::path const& place)
{
    std::atomic<int> ready{0};
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (char const* name : {"a", "b"})
    {
        writeFiles(place / name);
        threads.emplace_back([&, name] { runOne(place / name, ready, wrong); });
    }
    for (auto& thread : threads)
    {
        thread.join();
    }
    CHECK(wrong == 0);
}

//! Prefill of every length (chunks, and remainders of one), then one by one, recorded and not.
void testPasses(Bundle const& bundle)
{
    auto const ids = tokens(kCapacity);
    for (bool const canRecord : {true, false})
    {
        HostDevice device;
        device.canRecord = canRecord;
        DeviceWeights const weights(bundle, kDtype, device);
        Model model(bundle, makeEngines(device), weights, "float32", device);
        for (size_t prefill = 1; prefill <= kCapacity; ++prefill)
        {
            model.reset();
            CHECK(equal(model.append(part(ids, 0, prefill)), expected(part(ids, 0, prefill))));
            size_t const before = device.allocations;
            for (size_t i = prefill; i < kCapacity; ++i)
            {
                CHECK(equal(model.append({ids[i]}), expected(part(ids, 0, i + 1))));
            }
            CHECK(device.allocations == before && model.length() == kCapacity);
        }
        CHECK(model.isRecorded() == canRecord);
        CHECK(canRecord ? device.launches > 100 : device.launches == 0);
        CHECK(thrownBy<Error>([&] { model.append({1}); })
            == "sequence of 21 tokens: the bundle was exported for 20 (--max-seq-len)");
        CHECK(thrownBy<Error>([&] { model.append({7}); }) == "input_ids: expected ids below 7, found 7");
        CHECK(!thrownBy<Error>([&] { model.append({}); }).empty());
        CHECK(model.length() == kCapacity); // what is refused changes nothing
    }
}

void testSavedStates(Bundle const& bundle)
{
    auto const ids = tokens(kCapacity);
    HostDevice device;
    DeviceWeights const weights(bundle, kDtype, device);
    Model model(bundle, makeEngines(device), weights, "float32", device);
    for (size_t held : {size_t{3}, size_t{8}})
    {
        model.reset();
        model.append(part(ids, 0, held));
        SavedStates const saved = model.save();
        CHECK(saved.length == static_cast<int64_t>(held));
        model.append({0, 0, 0, 5});
        model.restore(saved);
        CHECK(equal(model.append(part(ids, held, held + 6)), expected(part(ids, 0, held + 6))));
        HostDevice other; // a state is of no device
        DeviceWeights const again(bundle, kDtype, other);
        Model second(bundle, makeEngines(other), again, "float32", other);
        second.append({1, 2});
        second.restore(saved);
        CHECK(equal(second.append({ids[held]}), expected(part(ids, 0, held + 1))));
        SavedStates wrong = saved;
        wrong.data.pop_back();
        CHECK(thrownBy<Error>([&] { model.restore(wrong); }).find("states: expected") == 0);
    }
}

void testMemory(Bundle const& bundle)
{
    HostDevice device;
    auto const engines = makeEngines(device);
    auto const uses = wholeMemory(bundle, engines, Dtype::kFloat32);
    size_t needed = 0;
    std::map<std::string, size_t> of;
    for (auto const& use : uses)
    {
        needed += use.bytes;
        of[use.what] = use.bytes;
    }
    CHECK(of.size() == uses.size() && of.size() == 4);
    // Rounded up to 256: five weights, of which the head shares the embedding; two caches and two turns of a state.
    CHECK(of.at("weights") == 5 * 256 && of.at("states") == 2 * 256 + 2 * 256 && of.at("engines' scratch") == 1024);
    device.free = needed - 1;
    auto const text = thrownBy<MissingCapabilityError>(
        [&]
        {
            CurrentDevice const current(device);
            requireMemory(device, uses);
        });
    CHECK(text.find("too little memory: " + std::to_string(needed) + " bytes are needed") != std::string::npos);
    CHECK(text.find("weights 1280") != std::string::npos);
    // A sequence needs no room for weights that are there.
    DeviceWeights const weights(bundle, kDtype, device);
    CHECK(device.allocations == 5 && device.uploads == 5);
    device.free = needed - 5 * 256;
    {
        Model const first(bundle, engines, weights, "float32", device);
        Model const second(bundle, engines, weights, "float32", device);
        CHECK(first.length() == 0 && second.length() == 0 && device.uploads == 5);
    }
    CHECK(device.live() == 5);
    device.free -= 1;
    CHECK(thrownBy<MissingCapabilityError>([&] { Model(bundle, engines, weights, "float32", device); })
              .find("too little memory")
        != std::string::npos);
}

//! Whatever allocation fails, all that came before is given back.
void testFailedOpen(Bundle const& bundle)
{
    size_t failed = 0;
    for (size_t at = 0; at < 100; ++at)
    {
        HostDevice device;
        device.failAt = at;
        bool const fails = !thrownBy<MissingCapabilityError>(
            [&]
            {
                DeviceWeights const weights(bundle, kDtype, device);
                Model const model(bundle, makeEngines(device), weights, "float32", device);
            }).empty();
        failed += fails;
        CHECK(device.live() == 0 && (!fails || device.allocations == at));
    }
    CHECK(failed > 10 && failed < 100);
}

//! A state that an engine takes in another shape or dtype than the manifest says, or not at all, is refused.
void testOtherStates(Bundle const& bundle)
{
    auto const refused = [&](std::string const& name, auto const& change)
    {
        HostDevice device;
        DeviceWeights const weights(bundle, kDtype, device);
        Engines engines = makeEngines(device);
        for (auto& block : smallBlocks())
        {
            auto const tensor = std::find_if(
                block.io.begin(), block.io.end(), [&](IoTensor const& one) { return one.name == name; });
            if (tensor != block.io.end())
            {
                change(*tensor);
                engines[block.kind] = std::make_shared<HostEngine>(device, block.io, kMaxTokens, block.body);
            }
        }
        return thrownBy<BundleError>([&] { Model const model(bundle, engines, weights, "float32", device); });
    };
    auto const says = [](std::string const& text, char const* part) { return text.find(part) != std::string::npos; };
    std::string const longer = refused("kv_cache", [](IoTensor& tensor) { ++tensor.shape[2]; });
    CHECK(says(longer, "engine of cached: kv_cache: by the manifest's states expected (1, 1, "));
    CHECK(says(longer, " of 4 bytes each, found (1, 1, "));
    CHECK(says(refused("recurrent_state_out", [](IoTensor& tensor) { tensor.elementBytes = 2; }),
        "engine of summed: recurrent_state_out: by the manifest's states expected (1, "));
    CHECK(says(refused("kv_cache_out", [](IoTensor& tensor) { tensor.name = "other"; }), ", found none"));
}

//! The engine that takes the fewest tokens bounds a pass, whichever comes first.
void testSmallestProfile(Bundle const& bundle)
{
    auto const ids = tokens(11);
    for (char const* kind : {"embedding", "cached", "summed"})
    {
        for (int64_t const most : {int64_t{1}, int64_t{3}})
        {
            HostDevice device;
            DeviceWeights const weights(bundle, kDtype, device);
            Model model(bundle, makeEngines(device, {{kind, most}}), weights, "float32", device);
            CHECK(equal(model.append(ids), expected(ids)));
        }
    }
}

//! Opened in one thread, called in others, closed in another still.
void testThreads(Bundle const& bundle)
{
    auto const ids = tokens(9);
    HostDevice device;
    DeviceWeights const weights(bundle, kDtype, device);
    std::unique_ptr<Model> model;
    auto const elsewhere = [](auto work)
    {
        std::thread([&] { CHECK(thrownBy<std::exception>(work) == ""); }).join();
    };
    elsewhere([&] { model = std::make_unique<Model>(bundle, makeEngines(device), weights, "float32", device); });
    elsewhere([&] { model->append(part(ids, 0, 4)); });
    SavedStates saved;
    elsewhere([&] { saved = model->save(); });
    elsewhere([&] { model->reset(); });
    elsewhere([&] { model->restore(saved); });
    for (size_t i = 4; i < ids.size(); ++i)
    {
        elsewhere([&] { CHECK(equal(model->append({ids[i]}), expected(part(ids, 0, i + 1)))); });
    }
    CHECK(model->isRecorded() && device.launches > 0 && device.recordings == 2);
    elsewhere([&] { model.reset(); });
    CHECK(device.recordings == 0 && device.live() == 5); // the weights
}

} // namespace

int main()
{
    auto const place = fs::temp_directory_path() / ("glm_trt_test_model_" + std::to_string(::getpid()));
    try
    {
        testTwoBundles(place / "two");
        Bundle const bundle = writeBundle(place);
        testPasses(bundle);
        testSavedStates(bundle);
        testMemory(bundle);
        testFailedOpen(bundle);
        testOtherStates(bundle);
        testSmallestProfile(bundle);
        testThreads(bundle);
    }
    catch (std::exception const& error)
    {
        std::fprintf(stderr, "%s\n", error.what());
        ++failures();
    }
    fs::remove_all(place);
    return checksFailed();
}
