// What the stand-in for TensorRT asks of the stand-in for the driver.
#pragma once

#include <cstddef>
#include <string>

namespace stand_in
{

//! Tell of what no right program does, by the name of a rule of README.md.
void violated(char const* rule, std::string const& what);

//! A violation where no context is current in this thread (CUDA Driver API, "Context Management").
void expectCurrent(char const* call);

//! Whether all of it lies in one live allocation; else a violation.
bool holds(void const* address, size_t bytes);

bool isCapturing(void* stream);

//! Do what a stream that is captured forbids: its capture is invalid then.
void spoilCapture();

//! Work that is done when the stream reaches it, and at each replay; `destroy` when it is no longer needed.
bool queue(void* stream, char const* what, void (*work)(void*), void (*destroy)(void*), void* data);

//! Ask the executor; it tells of errors itself.
void execute(std::string const& request);

} // namespace stand_in
