// cuda_device.cpp on the machine's libcuda.so.1, or on the strict one of tests/stand_ins that is found before it.
//
//     device            everything; 77 where there is no driver
//     device failing    openGpu must find no memory
#include "check.h"
#include "device.h"
#include "glm_trt/errors.h"

#include <cuda.h>
#include <dlfcn.h>
#include <numeric>
#include <thread>
#include <vector>

using namespace glm_trt;
using namespace glm_trt::test;

namespace
{

using Bytes = std::vector<unsigned char>;

Bytes counted(size_t count, unsigned first)
{
    Bytes data(count);
    std::iota(data.begin(), data.end(), static_cast<unsigned char>(first));
    return data;
}

//! What was given may be changed and freed at once; what is asked for is there at once.
void testCopies(Device& device)
{
    CurrentDevice const current(device);
    size_t const megabyte = size_t{1} << 20;
    for (size_t const bytes : {size_t{0}, size_t{1}, 2 * megabyte - 1, 2 * megabyte, 21 * megabyte + 3})
    {
        DeviceBuffer const first(device, bytes);
        DeviceBuffer const second(device, bytes);
        Bytes const data = counted(bytes, 7);
        {
            Bytes host = data;
            device.upload(first.data(), host.data(), bytes);
            host.assign(bytes, 0xEE);
        }
        device.copy(second.data(), first.data(), bytes);
        device.clear(first.data(), bytes / 2);
        Bytes found(bytes, 0xDD);
        device.download(found.data(), second.data(), bytes);
        CHECK(found == data);
        device.download(found.data(), first.data(), bytes);
        Bytes wanted = data;
        std::fill_n(wanted.begin(), bytes / 2, 0);
        CHECK(found == wanted);
    }
}

//! More of them than are on their way at once, from one variable.
void testSmallUploads(Device& device)
{
    CurrentDevice const current(device);
    DeviceBuffer const buffer(device, 100 * sizeof(int64_t));
    int64_t value = 0;
    for (; value < 100; ++value)
    {
        device.upload(buffer.data() + value * sizeof value, &value, sizeof value);
    }
    std::vector<int64_t> found(100);
    device.download(found.data(), buffer.data(), found.size() * sizeof value);
    for (int64_t i = 0; i < 100; ++i)
    {
        CHECK(found[static_cast<size_t>(i)] == i);
    }
}

void testRecording(Device& device)
{
    CurrentDevice const current(device);
    DeviceBuffer const from(device, 8);
    DeviceBuffer const to(device, 8);
    auto const work = [&] { device.copy(to.data(), from.data(), 8); };
    int64_t value = 1;
    device.upload(from.data(), &value, sizeof value);
    auto const recorded = device.record(work);
    CHECK(recorded != nullptr);
    for (int64_t i = 2; i < 5; ++i)
    {
        device.upload(from.data(), &i, sizeof i);
        device.clear(to.data(), 8);
        device.download(&value, to.data(), sizeof value);
        CHECK(value == 0); // what was recorded did not run
        recorded->launch();
        device.download(&value, to.data(), sizeof value);
        CHECK(value == i);
    }
    // What cannot be recorded is told from what is wrong.
    CHECK(device.record([&] { DeviceBuffer const buffer(device, 8); }) == nullptr);
    CHECK(device.record([&] { device.synchronize(); }) == nullptr);
    auto const wrong = [&]
    {
        device.record(
            [&]
            {
                work();
                throw Error("of the test");
            });
    };
    CHECK(thrownBy<Error>(wrong) == "of the test");
    CHECK(device.record(work) != nullptr); // the stream is whole again
}

//! From any thread, which has no context afterwards, as before.
void testThreads()
{
    std::unique_ptr<Device> device;
    DeviceBuffer buffer;
    auto const elsewhere = [](auto work)
    {
        std::thread([&] { CHECK(thrownBy<std::exception>(work) == ""); }).join();
    };
    elsewhere([&] { device = openGpu("the test"); });
    elsewhere(
        [&]
        {
            CurrentDevice const current(*device);
            buffer = DeviceBuffer(*device, 8);
            device->clear(buffer.data(), 8);
        });
    elsewhere(
        [&]
        {
            int64_t value = 1;
            {
                CurrentDevice const current(*device);
                device->download(&value, buffer.data(), sizeof value);
            }
            CHECK(value == 0);
            using GetInfo = CUresult (*)(size_t*, size_t*);
            void* driver = dlopen("libcuda.so.1", RTLD_NOW);
            size_t free = 0;
            size_t total = 0;
            CHECK(reinterpret_cast<GetInfo>(dlsym(driver, "cuMemGetInfo_v2"))(&free, &total)
                == CUDA_ERROR_INVALID_CONTEXT);
        });
    elsewhere([&] { buffer = DeviceBuffer(); });
    elsewhere([&] { device.reset(); });
}

} // namespace

int main(int count, char**)
try
{
    auto const device = openGpu("the test");
    CHECK(count == 1); // else it was to fail
    testCopies(*device);
    testSmallUploads(*device);
    testRecording(*device);
    {
        CurrentDevice const current(*device);
        auto const text = thrownBy<MissingCapabilityError>([&] { device->allocate(size_t{1} << 50); });
        CHECK(text == "the GPU has too little memory: cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY");
        CHECK(device->target().substr(0, 2) == "sm");
    }
    testThreads();
    return checksFailed();
}
catch (MissingCapabilityError const& error)
{
    std::fprintf(stderr, "%s\n", error.what());
    bool const failedAsWanted = std::string(error.what()).find("CUDA_ERROR_OUT_OF_MEMORY") != std::string::npos;
    return count == 1 ? 77 : failedAsWanted ? 0 : 1;
}
