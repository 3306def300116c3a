// Handles: numbers that stand for one object each, and for none after it.
#pragma once

#include "report.h"

#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace stand_in
{

uint64_t newHandle();

template <typename T>
class Registry
{
public:
    //! what: "stream"; for messages.
    explicit Registry(char const* what)
        : mWhat(what)
    {
    }

    template <typename Handle>
    Handle add(std::shared_ptr<T> object)
    {
        uint64_t const handle = newHandle();
        mLive[handle] = std::move(object);
        return reinterpret_cast<Handle>(handle);
    }

    //! The object, or nullptr and a violation: a real driver may crash then.
    template <typename Handle>
    std::shared_ptr<T> find(Handle handle, char const* call)
    {
        auto const key = reinterpret_cast<uint64_t>(handle);
        auto const found = mLive.find(key);
        if (found != mLive.end())
        {
            return found->second;
        }
        bool const isGone = mGone.count(key) != 0;
        violated(isGone ? "used-after-destroy" : "unknown-handle", std::string(call) + ": " + mWhat + " " + hex(key));
        return nullptr;
    }

    template <typename Handle>
    std::shared_ptr<T> remove(Handle handle, char const* call)
    {
        std::shared_ptr<T> const found = find(handle, call);
        if (found != nullptr)
        {
            mLive.erase(reinterpret_cast<uint64_t>(handle));
            mGone.insert(reinterpret_cast<uint64_t>(handle));
        }
        return found;
    }

    std::map<uint64_t, std::shared_ptr<T>> const& live() const
    {
        return mLive;
    }

    //! They go without having been destroyed.
    std::map<uint64_t, std::shared_ptr<T>> takeAll()
    {
        for (auto const& [handle, object] : mLive)
        {
            mGone.insert(handle);
        }
        return std::exchange(mLive, {});
    }

    char const* what() const
    {
        return mWhat;
    }

private:
    char const* mWhat;
    std::map<uint64_t, std::shared_ptr<T>> mLive;
    std::set<uint64_t> mGone;
};

} // namespace stand_in
