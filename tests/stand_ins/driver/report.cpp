#include "report.h"

#include "json_text.h"
#include "limits.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <utility>
#include <vector>

namespace stand_in
{
namespace
{

// Made for good: they are asked late in the process' end.
auto& gViolations = *new std::vector<std::string>;
auto& gCalls = *new std::map<std::string, int>;
CUresult gFault = CUDA_SUCCESS;

void set(std::string const& name, std::string const& value)
{
    Settings& to = settings();
    if (name == "target")
    {
        int const capability = value.rfind("sm", 0) == 0 ? std::atoi(value.c_str() + 2) : 0;
        if (limitsOf(capability) == nullptr)
        {
            std::fprintf(stderr, "stand-in driver: no such target: %s\n", value.c_str());
            std::abort();
        }
        to.capability = capability;
    }
    else if (name == "memory")
    {
        to.memory = std::strtoull(value.c_str(), nullptr, 10);
    }
    else if (name == "seed")
    {
        randomness().seed(std::strtoull(value.c_str(), nullptr, 10));
    }
    else if (name == "kernels" || name == "report" || name == "fail")
    {
        (name == "kernels" ? to.kernels : name == "report" ? to.report : to.fail) = value;
        gCalls.clear();
    }
    else
    {
        std::fprintf(stderr, "stand-in driver: no such setting: %s\n", name.c_str());
        std::abort();
    }
}

} // namespace

std::recursive_mutex& lock()
{
    static auto* const made = new std::recursive_mutex; // there for calls that come late in the process' end
    return *made;
}

Settings& settings()
{
    static auto* const made = new Settings;
    return *made;
}

std::mt19937_64& randomness()
{
    static auto* const made = new std::mt19937_64(0);
    return *made;
}

size_t randomBelow(size_t count)
{
    return static_cast<size_t>(randomness()() % count);
}

void readEnvironment()
{
    static bool done = false;
    if (std::exchange(done, true))
    {
        return;
    }
    for (char const* name : {"target", "memory", "seed", "kernels", "report", "fail"})
    {
        std::string variable = std::string("STAND_IN_") + name;
        for (char& letter : variable)
        {
            letter = letter >= 'a' && letter <= 'z' ? static_cast<char>(letter - 'a' + 'A') : letter;
        }
        if (char const* value = std::getenv(variable.c_str()); value != nullptr && *value != 0)
        {
            set(name, value);
        }
    }
}

void configure(std::string const& json)
{
    readEnvironment(); // first: it does not undo what is set here
    JsonValue const wanted = readJson(json);
    for (auto const& [name, value] : wanted.members)
    {
        set(name, value.text);
    }
}

void violated(char const* rule, std::string const& what)
{
    std::string const line = std::string("stand-in driver: ") + rule + ": " + what;
    std::fprintf(stderr, "%s\n", line.c_str());
    gViolations.push_back(line);
    if (!settings().report.empty())
    {
        if (std::FILE* file = std::fopen(settings().report.c_str(), "a"))
        {
            std::fprintf(file, "%s\n", line.c_str());
            std::fclose(file);
        }
    }
}

std::string takeViolations()
{
    std::string found;
    for (std::string const& line : gViolations)
    {
        found += line + "\n";
    }
    gViolations.clear();
    gFault = CUDA_SUCCESS;
    return found;
}

bool isViolated()
{
    return !gViolations.empty();
}

void fault(CUresult result)
{
    gFault = gFault == CUDA_SUCCESS ? result : gFault;
}

CUresult faultSoFar()
{
    return gFault;
}

bool mustFail(char const* name)
{
    std::string const& wanted = settings().fail;
    return !wanted.empty() && wanted == std::string(name) + ":" + std::to_string(++gCalls[name]);
}

std::string hex(uint64_t value)
{
    char text[32];
    std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
    return text;
}

} // namespace stand_in
