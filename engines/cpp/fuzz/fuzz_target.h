// What a fuzzer of this folder has: libFuzzer's entry point, and seeds for the driver that needs no libFuzzer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size);

//! Good inputs that cases are made of by mutation.
std::vector<std::string> fuzzSeeds();
//! Whether the latest input was accepted: a fuzzer whose cases are all refused at the door tests nothing.
bool wasAccepted();
