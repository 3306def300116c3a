// The C interface over the C++ one: exceptions become statuses here.
#include "glm_trt/glm_trt.h"
#include "glm_trt/runtime.h"

#include <algorithm>
#include <new>

struct glm_trt_runtime
{
    glm_trt::Runtime runtime;
};

struct glm_trt_sequence
{
    glm_trt::Sequence sequence;
};

namespace
{

thread_local std::string lastError;

constexpr int kWrongInput = 2;

template <typename Work>
int guarded(Work work) noexcept
{
    try
    {
        work();
        return 0;
    }
    catch (glm_trt::Error const& error)
    {
        lastError = error.what();
        return error.exitCode();
    }
    catch (std::bad_alloc const&)
    {
        lastError = "out of memory";
    }
    catch (std::exception const& error)
    {
        lastError = error.what();
    }
    catch (...)
    {
        lastError = "an exception that is not one of the library's";
    }
    return kWrongInput;
}

void expect(bool good, char const* what)
{
    if (!good)
    {
        throw glm_trt::Error(what);
    }
}

//! Of a caller that was built with another header, some fields would be misread.
void expectSize(glm_trt_options const& options)
{
    if (options.size != sizeof options)
    {
        throw glm_trt::Error("glm_trt_options: size " + std::to_string(options.size) + ": expected "
            + std::to_string(sizeof options) + ", which is sizeof(glm_trt_options) of this release (" + glm_trt::version()
            + ")");
    }
}

} // namespace

char const* glm_trt_version(void)
{
    return glm_trt::version();
}

char const* glm_trt_last_error(void)
{
    return lastError.c_str();
}

char const* glm_trt_default_backend(void)
{
    return glm_trt::defaultBackend();
}

int glm_trt_default_options(glm_trt_options* options)
{
    return guarded(
        [&]
        {
            expect(options, "glm_trt_default_options: a pointer is NULL");
            expectSize(*options);
            glm_trt::GenerateOptions const defaults;
            *options = {options->size, defaults.maxNewTokens, defaults.temperature, defaults.topK, defaults.topP,
                defaults.minP, defaults.repetitionPenalty, defaults.seed};
        });
}

int glm_trt_load(char const* bundle, char const* backend, char const* checkpoint, glm_trt_runtime** runtime)
{
    return guarded(
        [&]
        {
            expect(bundle && runtime, "glm_trt_load: a pointer is NULL");
            *runtime = nullptr;
            glm_trt::LoadOptions options;
            options.backend = backend ? backend : "";
            options.checkpoint = checkpoint ? checkpoint : "";
            *runtime = new glm_trt_runtime{glm_trt::Runtime::load(bundle, options)};
        });
}

void glm_trt_free(glm_trt_runtime* runtime)
{
    delete runtime;
}

int64_t glm_trt_vocab_size(glm_trt_runtime const* runtime)
{
    return runtime->runtime.vocabSize();
}

int64_t glm_trt_max_seq_len(glm_trt_runtime const* runtime)
{
    return runtime->runtime.maxSeqLen();
}

int glm_trt_sequence_new(glm_trt_runtime* runtime, glm_trt_sequence** sequence)
{
    return guarded(
        [&]
        {
            expect(runtime && sequence, "glm_trt_sequence_new: a pointer is NULL");
            *sequence = nullptr;
            *sequence = new glm_trt_sequence{runtime->runtime.sequence()};
        });
}

void glm_trt_sequence_free(glm_trt_sequence* sequence)
{
    delete sequence;
}

int glm_trt_sequence_reset(glm_trt_sequence* sequence)
{
    return guarded([&] { sequence->sequence.reset(); });
}

int64_t glm_trt_sequence_length(glm_trt_sequence const* sequence)
{
    return sequence->sequence.length();
}

int glm_trt_append(glm_trt_sequence* sequence, int64_t const* ids, int64_t count, float* logits)
{
    return guarded(
        [&]
        {
            expect(sequence && ids && count > 0, "glm_trt_append: expected a sequence and one token at least");
            auto const& found = sequence->sequence.prefill({ids, ids + count});
            if (logits)
            {
                std::copy(found.begin(), found.end(), logits);
            }
        });
}

int glm_trt_generate(glm_trt_sequence* sequence, int64_t const* ids, int64_t count, glm_trt_options const* options,
    glm_trt_on_token on_token, void* user, int64_t* tokens, int64_t* made)
{
    return guarded(
        [&]
        {
            expect(sequence && ids && count > 0 && options && tokens && made,
                "glm_trt_generate: a pointer is NULL, or there is no token");
            expectSize(*options);
            *made = 0;
            glm_trt::GenerateOptions wanted;
            wanted.maxNewTokens = options->max_new_tokens;
            wanted.temperature = options->temperature;
            wanted.topK = options->top_k;
            wanted.topP = options->top_p;
            wanted.minP = options->min_p;
            wanted.repetitionPenalty = options->repetition_penalty;
            wanted.seed = options->seed;
            auto const result = sequence->sequence.generate({ids, ids + count}, wanted,
                [&](int64_t token) { return on_token == nullptr || on_token(token, user) != 0; });
            std::copy(result.tokens.begin(), result.tokens.end(), tokens);
            *made = static_cast<int64_t>(result.tokens.size());
        });
}
