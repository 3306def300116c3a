// Modules, functions and launches.
#pragma once

#include "image.h"
#include "json_text.h"
#include "registry.h"

namespace stand_in
{

using LaunchCallback = int (*)(char const* sha256, char const* entry, unsigned const* grid,
    unsigned threads, unsigned sharedBytes, void** parameters);

struct Module
{
    std::shared_ptr<Image> image;
    unsigned long long context; //!< its id; 0: a library, which is of every context
    std::map<std::string, uint64_t> functions;
};

struct Function
{
    std::shared_ptr<Image> image;
    std::string name;
    unsigned long long context;
    int dynamicShared; //!< that a launch may ask for

    Entry const& entry() const
    {
        return image->entries.at(name);
    }
};

struct Dimensions
{
    unsigned x, y, z;
};

Registry<Module>& modules();
Registry<Function>& functions();

CUresult loadModule(void const* image, unsigned long long context, std::shared_ptr<Module>& module);
CUresult getFunction(Module& module, char const* name, uint64_t& handle);
CUresult launch(CUfunction function, Dimensions grid, Dimensions block, unsigned sharedBytes, CUstream stream,
    void** parameters);
void onLaunch(LaunchCallback callback);

//! What the executor answers; "" and a violation where it cannot. It may touch all device memory meanwhile.
bool execute(std::string const& request, std::string& reply);
void stopExecutor();

} // namespace stand_in
