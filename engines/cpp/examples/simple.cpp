// The smallest program: continue a prompt of token IDs. Build it against an installed tree:
//
//     c++ -std=c++17 simple.cpp $(pkg-config --cflags --libs glm_trt) -o simple
#include <glm_trt/runtime.h>
#include <iostream>

int main(int count, char** arguments)
{
    if (count < 3)
    {
        std::cerr << "usage: simple BUNDLE ID [ID ...]\n";
        return 2;
    }
    std::vector<int64_t> prompt;
    for (int i = 2; i < count; ++i)
    {
        prompt.push_back(std::atoll(arguments[i]));
    }
    try
    {
        auto runtime = glm_trt::Runtime::load(arguments[1]);
        auto sequence = runtime.sequence();
        glm_trt::GenerateOptions options;
        options.maxNewTokens = 64;
        sequence.generate(prompt, options,
            [](int64_t token)
            {
                std::cout << token << std::endl;
                return true; // false ends it here
            });
    }
    catch (glm_trt::Error const& error)
    {
        std::cerr << error.what() << "\n";
        return error.exitCode();
    }
}
