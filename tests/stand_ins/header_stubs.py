"""Classes whose functions, all that are pure in TensorRT's interfaces, say that they were called.

    python header_stubs.py HEADER_FOLDER OUTPUT

A stand-in derives from them and overrides what it models, so that what a program uses beyond it is
an error, in any version of the headers.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CLASSES = {
    "NvInferImpl.h": ("VRuntime", "VCudaEngine", "VExecutionContext"),
    "NvInferRuntimeCommon.h": ("IPluginRegistry",),
}
FUNCTION = re.compile(
    r"(?:TRT_DEPRECATED|TRT_NODISCARD)?\s*virtual\s+([^;{}()]*?)(\w+)\(([^;{}]*?)\)\s*"
    r"(const)?\s*(noexcept)?\s*=\s*0;"
)


def stub(name: str, text: str) -> str:
    """The class `name` of a header as one without pure functions."""
    begin = re.search(rf"^class {name}\b[^;{{]*{{", text, re.MULTILINE)
    assert begin, name
    body = text[begin.end() : text.index("\n};", begin.end())]
    body = re.sub(r"//.*", "", body)
    body = re.sub(r"#if ENABLE_FEATURE.*?#endif", "", body, flags=re.DOTALL)
    space = "nvinfer1::apiv" if name.startswith("V") else "nvinfer1"
    lines = [f"class Stub{name} : public {space}::{name}", "{", "public:"]
    for kind, function, arguments, const, no_except in FUNCTION.findall(body):
        types = re.sub(r"\s*=\s*[^,]+", "", arguments)  # defaults
        if "~" in kind:
            continue
        result = kind.strip()
        ends = "std::abort();" if result.endswith("&") else "" if result == "void" else "return {};"
        lines.append(
            f"    {result} {function}({types}) {const} {no_except} override\n"
            f'    {{ unexpected("{name}::{function}"); {ends} }}'
        )
    return "\n".join([*lines, "};"])


def main() -> None:
    """Read the headers, write the stubs."""
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    parts = ["#include <NvInferRuntime.h>", "#include <cstdlib>",
             "void unexpected(char const* function);", "using namespace nvinfer1;",
             "using namespace nvinfer1::apiv;"]  # fmt: skip
    for header, names in CLASSES.items():
        text = (folder / header).read_text(encoding="utf-8")
        parts += [stub(name, text) for name in names]
    output.write_text("#pragma once\n" + "\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
