#include "image.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <elf.h>
#include <regex>
#include <stdexcept>

namespace stand_in
{
namespace
{

constexpr uint16_t kCuda = 190; // EM_CUDA
// Attributes of .nv.info.NAME, as `cuobjdump -elf` names them.
enum Attribute : uint8_t
{
    kREQNTID = 0x10,
    kKPARAM_INFO = 0x17
};
constexpr uint8_t kSized = 0x04; // EIFMT_SVAL: as many bytes follow as its last two say

template <typename T>
T at(char const* data)
{
    T value;
    std::memcpy(&value, data, sizeof value);
    return value;
}

void readInfo(char const* data, size_t bytes, Entry& entry)
{
    for (size_t i = 0; i + 4 <= bytes;)
    {
        auto const format = at<uint8_t>(data + i);
        auto const attribute = at<uint8_t>(data + i + 1);
        auto const size = at<uint16_t>(data + i + 2);
        char const* const value = data + i + 4;
        if (format == kSized && attribute == kKPARAM_INFO)
        {
            auto const ordinal = at<uint16_t>(value + 4);
            if (entry.parameters.size() <= ordinal)
            {
                entry.parameters.resize(size_t{ordinal} + 1);
            }
            entry.parameters[ordinal] = {at<uint16_t>(value + 6), at<uint32_t>(value + 8) >> 18};
        }
        if (format == kSized && attribute == kREQNTID)
        {
            std::memcpy(entry.requiredThreads, value, sizeof entry.requiredThreads);
        }
        i += 4 + (format == kSized ? size : 0);
    }
}

Image readElf(char const* data)
{
    auto const header = at<Elf64_Ehdr>(data);
    if (header.e_machine != kCuda)
    {
        throw std::runtime_error("an ELF file of machine " + std::to_string(header.e_machine));
    }
    Image image;
    // Version 7 of the ABI has the architecture in the lowest byte, later ones in the next.
    image.capability = static_cast<int>(
        header.e_ident[EI_ABIVERSION] <= 7 ? header.e_flags & 0xFF : header.e_flags >> 8 & 0xFF);
    uint64_t const sectionsEnd = header.e_shoff + uint64_t{header.e_shnum} * header.e_shentsize;
    uint64_t const segmentsEnd = header.e_phoff + uint64_t{header.e_phnum} * header.e_phentsize;
    image.sha256 = sha256Of(data, std::max(sectionsEnd, segmentsEnd));
    auto const section = [&](unsigned i) { return at<Elf64_Shdr>(data + header.e_shoff + i * sizeof(Elf64_Shdr)); };
    char const* const names = data + section(header.e_shstrndx).sh_offset;
    std::string const info = ".nv.info.";
    std::string const shared = ".nv.shared.";
    for (unsigned i = 0; i < header.e_shnum; ++i)
    {
        std::string const name = names + section(i).sh_name;
        if (name.rfind(info, 0) == 0)
        {
            readInfo(data + section(i).sh_offset, section(i).sh_size, image.entries[name.substr(info.size())]);
        }
    }
    for (unsigned i = 0; i < header.e_shnum; ++i)
    {
        std::string const name = names + section(i).sh_name;
        auto const found = name.rfind(shared, 0) == 0 ? image.entries.find(name.substr(shared.size()))
                                                      : image.entries.end();
        if (found != image.entries.end())
        {
            found->second.sharedBytes = section(i).sh_size;
        }
    }
    return image;
}

//! PTX is compiled by the driver for the device that it has, if that is no older than `.target`.
Image readPtx(std::string const& text)
{
    Image image;
    image.isPtx = true;
    image.sha256 = sha256Of(text.data(), text.size());
    std::smatch found;
    if (!std::regex_search(text, found, std::regex(R"(\.target\s+sm_(\d+))")))
    {
        throw std::runtime_error("PTX without a target");
    }
    image.capability = std::atoi(found[1].str().c_str());
    std::regex const entries(R"(\.entry\s+(\w+)\s*\(([^)]*)\)\s*\{([^}]*)\})");
    std::regex const parameters(R"(\.param\s+\.[a-z](\d+))");
    for (std::sregex_iterator i(text.begin(), text.end(), entries), end; i != end; ++i)
    {
        Entry& entry = image.entries[(*i)[1]];
        std::string const list = (*i)[2];
        size_t offset = 0;
        for (std::sregex_iterator p(list.begin(), list.end(), parameters); p != end; ++p)
        {
            auto const bytes = static_cast<size_t>(std::atoi((*p)[1].str().c_str())) / 8;
            offset = (offset + bytes - 1) / bytes * bytes;
            entry.parameters.push_back({offset, bytes});
            offset += bytes;
        }
        entry.doesNothing = std::regex_match((*i)[3].str(), std::regex(R"(\s*ret;\s*)"));
    }
    return image;
}

} // namespace

Image readImage(void const* data)
{
    auto const* const bytes = static_cast<char const*>(data);
    if (std::memcmp(bytes, ELFMAG, SELFMAG) == 0)
    {
        return readElf(bytes);
    }
    std::string const text = bytes; // PTX is "a null-terminated string" (cuModuleLoadData)
    if (text.find(".version") == std::string::npos)
    {
        throw std::runtime_error("neither ELF nor PTX");
    }
    return readPtx(text);
}

} // namespace stand_in
