// glm-trt-run: continue a prompt of token IDs on the GPU. Exit codes as glm-trt's: 0 done, 2 wrong usage or input,
// 3 the machine lacks what it needs.
#include "glm_trt/runtime.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace
{

constexpr char kUsage[]
    = "usage: glm-trt-run BUNDLE --input-ids 1,2,3 [--max-new-tokens N] [--temperature T] [--top-k N] [--top-p P]\n"
      "                   [--min-p P] [--repetition-penalty R] [--seed S] [--backend tensorrt|tensorrt-rtx]\n"
      "                   [--dtype float32|bfloat16|float16] [--checkpoint DIR] [--json] [--version]\n";

struct Options
{
    std::string bundle;
    std::vector<int64_t> ids;
    glm_trt::LoadOptions load;
    glm_trt::GenerateOptions generate;
    bool json{false};
};

template <typename T, typename Parse>
T number(std::string const& name, char const* text, Parse parse)
{
    char* end = nullptr;
    errno = 0;
    T const value = parse(text, &end);
    if (end == text || *end != '\0' || errno == ERANGE)
    {
        throw glm_trt::Error(name + ": expected a number, found '" + text + "'");
    }
    return value;
}

int64_t integer(std::string const& name, char const* text)
{
    return number<int64_t>(name, text, [](char const* t, char** end) { return std::strtoll(t, end, 10); });
}

double real(std::string const& name, char const* text)
{
    return number<double>(name, text, [](char const* t, char** end) { return std::strtod(t, end); });
}

std::vector<int64_t> ids(std::string const& name, std::string const& text)
{
    std::vector<int64_t> found;
    for (size_t begin = 0; begin <= text.size();)
    {
        size_t const end = std::min(text.find(',', begin), text.size());
        found.push_back(integer(name, text.substr(begin, end - begin).c_str()));
        begin = end + 1;
    }
    return found;
}

//! By hand, as getopt prints errors of its own; these are thrown, as all others.
Options parse(int count, char** arguments)
{
    Options options;
    auto& generate = options.generate;
    for (int i = 1; i < count; ++i)
    {
        std::string const name = arguments[i];
        if (name == "--json")
        {
            options.json = true;
            continue;
        }
        if (name.rfind("--", 0) != 0 && options.bundle.empty())
        {
            options.bundle = name;
            continue;
        }
        if (i + 1 == count)
        {
            throw glm_trt::Error(name + ": unknown, or without its value");
        }
        char const* value = arguments[++i];
        if (name == "--input-ids") { options.ids = ids(name, value); }
        else if (name == "--max-new-tokens") { generate.maxNewTokens = integer(name, value); }
        else if (name == "--temperature") { generate.temperature = real(name, value); }
        else if (name == "--top-k") { generate.topK = integer(name, value); }
        else if (name == "--top-p") { generate.topP = real(name, value); }
        else if (name == "--min-p") { generate.minP = real(name, value); }
        else if (name == "--repetition-penalty") { generate.repetitionPenalty = real(name, value); }
        else if (name == "--seed") { generate.seed = static_cast<uint64_t>(integer(name, value)); }
        else if (name == "--backend") { options.load.backend = value; }
        else if (name == "--dtype") { options.load.dtype = value; }
        else if (name == "--checkpoint") { options.load.checkpoint = value; }
        else { throw glm_trt::Error(name + ": unknown argument"); }
    }
    if (options.bundle.empty() || options.ids.empty())
    {
        throw glm_trt::Error("a bundle and --input-ids are needed");
    }
    if (generate.maxNewTokens < 1)
    {
        throw glm_trt::Error(
            "--max-new-tokens: expected at least 1, found " + std::to_string(generate.maxNewTokens));
    }
    return options;
}

std::string joined(std::vector<int64_t> const& numbers, char const* between)
{
    std::string text;
    for (int64_t const number : numbers)
    {
        text += (text.empty() ? "" : between) + std::to_string(number);
    }
    return text;
}

void run(Options const& options)
{
    auto runtime = glm_trt::Runtime::load(options.bundle, options.load);
    auto sequence = runtime.sequence();
    bool isFirst = true;
    auto const result = sequence.generate(options.ids, options.generate,
        [&](int64_t token)
        {
            if (!options.json)
            {
                std::printf(isFirst ? "%lld" : ",%lld", static_cast<long long>(token));
                std::fflush(stdout);
                isFirst = false;
            }
            return true;
        });
    if (options.json)
    {
        std::printf("{\"input_ids\": [%s], \"token_ids\": [%s], \"finish_reason\": \"%s\"}",
            joined(options.ids, ", ").c_str(), joined(result.tokens, ", ").c_str(), result.finishReason.c_str());
    }
    std::printf("\n");
}

} // namespace

int main(int count, char** arguments)
{
    if (count == 2 && std::strcmp(arguments[1], "--version") == 0)
    {
        std::printf("glm-trt-run %s, for %s\n", glm_trt::version(), glm_trt::defaultBackend());
        return 0;
    }
    if (count < 2 || std::strcmp(arguments[1], "--help") == 0)
    {
        std::fputs(kUsage, count < 2 ? stderr : stdout);
        return count < 2 ? 2 : 0;
    }
    Options options;
    try
    {
        options = parse(count, arguments);
        run(options);
        return 0;
    }
    catch (glm_trt::Error const& error)
    {
        std::fprintf(stderr, "glm-trt-run: error: %s\n", error.what());
        return error.exitCode();
    }
    catch (std::exception const& error)
    {
        std::fprintf(stderr, "glm-trt-run: error: %s\n", error.what());
        return 2;
    }
}
