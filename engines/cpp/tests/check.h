// Checks that say where and what; a test program returns checksFailed().
#pragma once

#include <cstdio>
#include <exception>
#include <string>

namespace glm_trt::test
{

inline int& failures()
{
    static int count = 0;
    return count;
}

inline void report(bool good, char const* file, int line, char const* what)
{
    if (!good)
    {
        std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
        ++failures();
    }
}

inline int checksFailed()
{
    std::fprintf(stderr, failures() ? "%d failed\n" : "all passed\n", failures());
    return failures() != 0;
}

//! The message of what `call` throws; "" if it throws nothing.
template <typename E, typename F>
std::string thrownBy(F&& call)
{
    try
    {
        call();
    }
    catch (E const& error)
    {
        return error.what();
    }
    return "";
}

} // namespace glm_trt::test

#define CHECK(condition) glm_trt::test::report((condition), __FILE__, __LINE__, #condition)
