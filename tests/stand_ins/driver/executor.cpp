// A child process that does what kernels and graphs do, on the same device memory.
#include "kernels.h"
#include "memory.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

extern char** environ;

namespace stand_in
{
namespace
{

pid_t gChild = 0;
int gSocket = -1;

bool transfer(bool isSend, void* data, size_t bytes)
{
    auto* at = static_cast<char*>(data);
    while (bytes > 0)
    {
        ssize_t const done = isSend ? send(gSocket, at, bytes, MSG_NOSIGNAL) : recv(gSocket, at, bytes, 0);
        if (done < 0 && errno == EINTR)
        {
            continue;
        }
        if (done <= 0)
        {
            return false;
        }
        at += done;
        bytes -= static_cast<size_t>(done);
    }
    return true;
}

bool start()
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    {
        return false;
    }
    char const* const python = std::getenv("STAND_IN_PYTHON");
    char const* const script = std::getenv("STAND_IN_EXECUTOR");
    std::string const memory = std::to_string(arenaDescriptor());
    std::string const socket = std::to_string(ends[1]);
    std::string const address = std::to_string(arenaRange().start);
    std::string const bytes = std::to_string(arenaRange().bytes);
    char const* const arguments[] = {python != nullptr ? python : STAND_IN_PYTHON_PATH, "-P",
        script != nullptr ? script : STAND_IN_EXECUTOR_PATH, socket.c_str(), memory.c_str(), address.c_str(),
        bytes.c_str(), nullptr};
    // It ends when the socket does. PR_SET_PDEATHSIG would end it with the thread that came here first.
    gChild = fork();
    if (gChild == 0)
    {
        int const kept[2] = {arenaDescriptor(), ends[1]};
        bool isReady = true;
        for (int const descriptor : kept)
        {
            isReady = fcntl(descriptor, F_SETFD, 0) == 0 && isReady;
        }
        if (isReady)
        {
            execv(arguments[0], const_cast<char* const*>(arguments));
        }
        _exit(127);
    }
    close(ends[1]);
    gSocket = ends[0];
    return gChild > 0;
}

} // namespace

bool execute(std::string const& request, std::string& reply)
{
    if (gSocket < 0 && !start())
    {
        violated("executor", std::string("it cannot be started: ") + std::strerror(errno));
        return false;
    }
    auto bytes = static_cast<uint32_t>(request.size());
    std::string sent(reinterpret_cast<char*>(&bytes), sizeof bytes);
    sent += request;
    bool isDone = transfer(true, sent.data(), sent.size()) && transfer(false, &bytes, sizeof bytes);
    reply.assign(isDone ? bytes : 0, 0);
    isDone = isDone && transfer(false, reply.data(), bytes);
    if (!isDone)
    {
        violated("executor", "it died over " + request.substr(0, 200));
        stopExecutor();
        return false;
    }
    JsonValue const read = readJson(reply);
    if (JsonValue const* const strays = read.find("strays"))
    {
        std::vector<uint64_t> addresses;
        for (JsonValue const& address : strays->items)
        {
            addresses.push_back(std::strtoull(address.text.c_str(), nullptr, 10));
        }
        straysFound(addresses, request.substr(0, 200));
    }
    checkPads(request.substr(0, 200));
    JsonValue const* const error = read.find("error");
    if (error != nullptr)
    {
        violated("executor", error->text);
    }
    return error == nullptr;
}

void stopExecutor()
{
    if (gSocket >= 0)
    {
        close(gSocket); // it ends when nobody asks any more
        gSocket = -1;
        waitpid(gChild, nullptr, 0);
    }
}

} // namespace stand_in
