// Two threads that check a manifest at once, neither before the other: for a race detector (tests/engines/cpp/test_races.py).
#include "schema.h"

#include <thread>

int main()
{
    glm_trt::Json const manifest{{"key", std::string(64, 'a')}};
    size_t found[2]{};
    auto const work = [&](size_t& failures)
    { failures = glm_trt::failuresOf(manifest, glm_trt::manifestSchema()).size(); };
    std::thread first(work, std::ref(found[0]));
    std::thread second(work, std::ref(found[1]));
    first.join();
    second.join();
    return found[0] == 0 || found[0] != found[1];
}
