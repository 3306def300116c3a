// The plugins of one builder or runtime.
#pragma once

#include "stubs.h"

#include <memory>
#include <string>
#include <vector>

namespace stand_in
{

constexpr char kNotFound[] = "Plugin not found, are the plugin name, version, and namespace correct?";

class Registry : public StubIPluginRegistry
{
public:
    explicit Registry(nvinfer1::ILogger& logger)
        : mLogger(logger)
    {
    }
    nvinfer1::IPluginRegistry::PluginLibraryHandle loadLibrary(char const* path) noexcept override;
    nvinfer1::IPluginCreatorInterface* getCreator(
        char const* name, char const* version, char const* space) noexcept override;
    nvinfer1::IPluginCreatorInterface* const* getAllCreators(int32_t* count) const noexcept override;
    nvinfer1::IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t* count) noexcept override
    {
        return getAllCreators(count);
    }

    //! The creator of that name; nullptr, with the library's own words in the log, where there is none.
    nvinfer1::IPluginCreatorV3One* find(std::string const& name, std::string const& version, std::string const& space);

private:
    nvinfer1::ILogger& mLogger;
    std::vector<nvinfer1::IPluginCreatorInterface*> mCreators;
};

//! What a build asks of a plugin; request and answer are JSON, as plan.py has them. Throws std::runtime_error.
std::string buildPlugin(Registry& registry, std::string const& request);

} // namespace stand_in
