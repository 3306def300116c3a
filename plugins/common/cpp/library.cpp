// What TensorRT looks up in the library: getCreators() and setLoggerFinder().
#include "plugin.h"

#include <NvInferRuntime.h>

#include <cstdio>
#include <memory>
#include <vector>

namespace
{

nvinfer1::ILoggerFinder* gLoggerFinder = nullptr;

} // namespace

namespace glm_trt
{

void logError(char const* op, std::string const& message) noexcept
{
    try
    {
        std::string const text = "glm_trt::" + std::string(op) + ": " + message;
        nvinfer1::ILogger* logger = gLoggerFinder == nullptr ? nullptr : gLoggerFinder->findLogger();
        if (logger != nullptr)
        {
            logger->log(nvinfer1::ILogger::Severity::kERROR, text.c_str());
        }
        else
        {
            std::fprintf(stderr, "%s\n", text.c_str());
        }
    }
    catch (...)
    {
        std::fputs("glm_trt: out of memory while reporting an error\n", stderr);
    }
}

} // namespace glm_trt

extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(
    int32_t& nbCreators)
{
    static std::vector<std::unique_ptr<glm_trt::OperatorCreator>> owners;
    static std::vector<nvinfer1::IPluginCreatorInterface*> const creators = [] {
        std::vector<nvinfer1::IPluginCreatorInterface*> all;
        for (int32_t i = 0; i < glm_trt::kOperatorCount; ++i)
        {
            owners.push_back(std::make_unique<glm_trt::OperatorCreator>(glm_trt::kOperators[i]));
            all.push_back(owners.back().get());
        }
        return all;
    }();
    nbCreators = static_cast<int32_t>(creators.size());
    return creators.data();
}

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder)
{
    gLoggerFinder = finder;
}
