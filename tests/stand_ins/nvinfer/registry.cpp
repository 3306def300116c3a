#include "registry.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>

namespace stand_in
{
namespace
{

//! Libraries ask for one logger a process (ILoggerFinder).
class Finder final : public nvinfer1::ILoggerFinder
{
public:
    nvinfer1::ILogger* findLogger() override
    {
        return logger;
    }
    nvinfer1::ILogger* logger{nullptr};
};

} // namespace

nvinfer1::IPluginRegistry::PluginLibraryHandle Registry::loadLibrary(char const* path) noexcept
{
    static Finder finder;
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    using GetCreators = nvinfer1::IPluginCreatorInterface* const*(int32_t&);
    using SetLoggerFinder = void(nvinfer1::ILoggerFinder*);
    auto* const creators
        = library == nullptr ? nullptr : reinterpret_cast<GetCreators*>(dlsym(library, "getCreators"));
    if (creators == nullptr)
    {
        mLogger.log(nvinfer1::ILogger::Severity::kERROR,
            (std::string("Unable to load library: ") + path + ": " + (library == nullptr ? dlerror() : "no getCreators"))
                .c_str());
        return nullptr;
    }
    if (auto* const find = reinterpret_cast<SetLoggerFinder*>(dlsym(library, "setLoggerFinder")))
    {
        finder.logger = &mLogger;
        find(&finder);
    }
    int32_t count = 0;
    nvinfer1::IPluginCreatorInterface* const* const found = creators(count);
    for (int32_t i = 0; i < count; ++i)
    {
        if (std::find(mCreators.begin(), mCreators.end(), found[i]) == mCreators.end())
        {
            mCreators.push_back(found[i]);
        }
    }
    return library;
}

nvinfer1::IPluginCreatorInterface* Registry::getCreator(
    char const* name, char const* version, char const* space) noexcept
{
    for (auto* const creator : mCreators)
    {
        auto* const known = static_cast<nvinfer1::IPluginCreatorV3One*>(creator);
        if (std::strcmp(known->getPluginName(), name) == 0 && std::strcmp(known->getPluginVersion(), version) == 0
            && std::strcmp(known->getPluginNamespace(), space) == 0)
        {
            return creator;
        }
    }
    return nullptr;
}

nvinfer1::IPluginCreatorInterface* const* Registry::getAllCreators(int32_t* count) const noexcept
{
    *count = static_cast<int32_t>(mCreators.size());
    return mCreators.data();
}

nvinfer1::IPluginCreatorV3One* Registry::find(
    std::string const& name, std::string const& version, std::string const& space)
{
    auto* const creator = getCreator(name.c_str(), version.c_str(), space.c_str());
    if (creator == nullptr)
    {
        mLogger.log(nvinfer1::ILogger::Severity::kERROR,
            (std::string(kNotFound) + " (" + name + ", version " + version + ", namespace \"" + space + "\")").c_str());
    }
    return static_cast<nvinfer1::IPluginCreatorV3One*>(creator);
}

} // namespace stand_in
