#include "kernels.h"

#include "context.h"
#include "limits.h"
#include "memory.h"
#include "streams.h"

#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace stand_in
{
namespace
{

constexpr uint64_t kPointerAlignment = 16; // that every kernel was compiled for (plugins/common/aot.py)
LaunchCallback gCallback = nullptr;

//! What kernels.json says of an image, or nullptr.
JsonValue const* described(Image const& image)
{
    static std::string path;
    static JsonValue all;
    if (path != settings().kernels)
    {
        path = settings().kernels;
        std::ifstream file(path);
        std::stringstream text;
        text << file.rdbuf();
        all = readJson(text.str());
    }
    return path.empty() ? nullptr : all.find(image.sha256);
}

//! A launch as it was asked for, with the bytes of its arguments.
struct Launch
{
    std::shared_ptr<Function> function;
    unsigned grid[3];
    unsigned threads;
    unsigned sharedBytes;
    std::vector<std::string> arguments;
};

uint64_t integer(std::string const& bytes)
{
    uint64_t value = 0;
    std::memcpy(&value, bytes.data(), std::min(bytes.size(), sizeof value));
    return value;
}

//! Arguments against what the kernel was compiled for.
bool areArgumentsRight(Launch const& launch)
{
    JsonValue const* const kernel = described(*launch.function->image);
    if (kernel == nullptr)
    {
        return true; // its types are unknown
    }
    auto const& signature = kernel->find("signature")->items;
    auto const before = launch.arguments.size();
    bool isRight = true;
    for (size_t i = 0; i < signature.size() && i < before; ++i)
    {
        std::string const& kind = signature[i].items[1].text;
        uint64_t const value = integer(launch.arguments[i]);
        std::string const what = launch.function->name + ": argument " + signature[i].items[0].text;
        if (kind[0] == '*' && value != 0)
        {
            if (value % kPointerAlignment != 0)
            {
                violated("misaligned", what + ": " + describe(value) + " is no multiple of 16");
                fault(CUDA_ERROR_MISALIGNED_ADDRESS);
                isRight = false;
            }
            // The end of an allocation is the place of something of no bytes.
            isRight = holds(value, 0, what) && isRight;
        }
        if (kind == "i32:16" && value % 16 != 0)
        {
            violated("misaligned", what + ": " + std::to_string(value) + " is no multiple of 16");
            isRight = false;
        }
    }
    return isRight;
}

std::string requestOf(Launch const& launch)
{
    std::string request = "{\"do\": \"kernel\", \"kernels\": " + quoted(settings().kernels) + ", \"image\": "
        + quoted(launch.function->image->sha256) + ", \"entry\": " + quoted(launch.function->name)
        + ", \"threads\": " + std::to_string(launch.threads) + ", \"shared\": " + std::to_string(launch.sharedBytes)
        + ", \"grid\": [" + std::to_string(launch.grid[0]) + ", " + std::to_string(launch.grid[1]) + ", "
        + std::to_string(launch.grid[2]) + "], \"arguments\": [";
    for (size_t i = 0; i < launch.arguments.size(); ++i)
    {
        static char const kDigits[] = "0123456789abcdef";
        std::string digits;
        for (unsigned char const byte : launch.arguments[i])
        {
            digits += {kDigits[byte >> 4], kDigits[byte & 15]};
        }
        request += (i != 0 ? ", " : "") + quoted(digits);
    }
    return request + "]}";
}

void perform(Launch const& launch)
{
    if (launch.function->entry().doesNothing)
    {
        return;
    }
    if (!areArgumentsRight(launch))
    {
        fault(CUDA_ERROR_ILLEGAL_ADDRESS);
        return;
    }
    std::string const& sha256 = launch.function->image->sha256;
    if (gCallback != nullptr)
    {
        std::vector<void*> parameters;
        for (std::string const& argument : launch.arguments)
        {
            parameters.push_back(const_cast<char*>(argument.data()));
        }
        if (gCallback(sha256.c_str(), launch.function->name.c_str(), launch.grid, launch.threads, launch.sharedBytes,
                parameters.data())
            != 0)
        {
            fault(CUDA_ERROR_LAUNCH_FAILED);
        }
        return;
    }
    std::string reply;
    if (described(*launch.function->image) == nullptr)
    {
        violated("unknown-kernel", launch.function->name + ": its image is not in STAND_IN_KERNELS");
        fault(CUDA_ERROR_LAUNCH_FAILED);
    }
    else if (!execute(requestOf(launch), reply))
    {
        fault(CUDA_ERROR_LAUNCH_FAILED);
    }
}

} // namespace

Registry<Module>& modules()
{
    static auto* const made = new Registry<Module>("module");
    return *made;
}

Registry<Function>& functions()
{
    static auto* const made = new Registry<Function>("function");
    return *made;
}

void onLaunch(LaunchCallback callback)
{
    gCallback = callback;
}

CUresult loadModule(void const* data, unsigned long long context, std::shared_ptr<Module>& module)
{
    try
    {
        auto const image = std::make_shared<Image>(readImage(data));
        int const ours = settings().capability;
        // Code of a major version runs on its later minor versions up to 8.x; from 9.0 on it is for one chip.
        bool const isSame = image->capability == ours
            || (ours < 90 && image->capability / 10 == ours / 10 && image->capability <= ours);
        bool const fits = image->isPtx ? image->capability <= ours : isSame;
        if (!fits)
        {
            return image->isPtx ? CUDA_ERROR_INVALID_PTX : CUDA_ERROR_NO_BINARY_FOR_GPU;
        }
        module = std::make_shared<Module>(Module{image, context, {}});
        return CUDA_SUCCESS;
    }
    catch (std::runtime_error const&)
    {
        return CUDA_ERROR_INVALID_IMAGE;
    }
}

CUresult getFunction(Module& module, char const* name, uint64_t& handle)
{
    if (module.image->entries.count(name) == 0)
    {
        return CUDA_ERROR_NOT_FOUND;
    }
    if (module.functions.count(name) == 0)
    {
        int const left = kSharedWithoutAsking - static_cast<int>(module.image->entries[name].sharedBytes);
        auto const made = std::make_shared<Function>(Function{module.image, name, module.context, left});
        module.functions[name] = reinterpret_cast<uint64_t>(functions().add<CUfunction>(made));
    }
    handle = module.functions[name];
    return CUDA_SUCCESS;
}

CUresult launch(CUfunction handle, Dimensions grid, Dimensions block, unsigned sharedBytes, CUstream stream,
    void** parameters)
{
    auto const function = functions().find(handle, "cuLaunchKernel");
    if (function == nullptr)
    {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (function->context != 0 && function->context != aliveId())
    {
        violated("function-of-another-context", function->name);
        return CUDA_ERROR_INVALID_HANDLE;
    }
    Entry const& entry = function->entry();
    unsigned const sizes[3] = {grid.x, grid.y, grid.z};
    for (int i = 0; i < 3; ++i)
    {
        if (sizes[i] == 0 || sizes[i] > kGrid[i])
        {
            return CUDA_ERROR_INVALID_VALUE;
        }
    }
    unsigned long long const threads = 1ull * block.x * block.y * block.z;
    unsigned const* const required = entry.requiredThreads;
    bool const isRequired
        = required[0] == 0 || (required[0] == block.x && required[1] == block.y && required[2] == block.z);
    if (threads == 0 || threads > kThreadsOfBlock || !isRequired)
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (sharedBytes > static_cast<unsigned>(function->dynamicShared))
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    Launch made{function, {grid.x, grid.y, grid.z}, block.x, sharedBytes, {}};
    for (size_t i = 0; i < entry.parameters.size(); ++i)
    {
        if (parameters == nullptr || parameters[i] == nullptr)
        {
            return CUDA_ERROR_INVALID_VALUE;
        }
        // They are read now: "the kernel parameters are copied" (cuLaunchKernel).
        made.arguments.emplace_back(static_cast<char const*>(parameters[i]), entry.parameters[i].bytes);
    }
    return queue(stream, "cuLaunchKernel", {function->name, [made] { perform(made); }});
}

} // namespace stand_in
