/* glm-trt for C and other languages. No exception passes: each call returns 0, or the exit code that the command
 * would end with (2 wrong input, 3 the machine lacks something), and glm_trt_last_error() says what it was. */
#ifndef GLM_TRT_H
#define GLM_TRT_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define GLM_TRT_C_API
#else
#define GLM_TRT_C_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C"
{
#endif

typedef struct glm_trt_runtime glm_trt_runtime;
typedef struct glm_trt_sequence glm_trt_sequence;

/* As glm_trt::GenerateOptions. Set size to sizeof(glm_trt_options), then glm_trt_default_options fills in the rest:
 * the size says which fields the caller knows, as later releases may add some at the end. */
typedef struct glm_trt_options
{
    size_t size;
    int64_t max_new_tokens;
    double temperature;
    int64_t top_k;
    double top_p;
    double min_p;
    double repetition_penalty;
    uint64_t seed;
} glm_trt_options;

/* Gets each token; returns 0 to end there. */
typedef int (*glm_trt_on_token)(int64_t token, void* user);

GLM_TRT_C_API char const* glm_trt_version(void);
/* Of this thread's latest call that failed; never NULL. */
GLM_TRT_C_API char const* glm_trt_last_error(void);
/* The backend that the library was built for: "tensorrt" or "tensorrt-rtx". */
GLM_TRT_C_API char const* glm_trt_default_backend(void);
GLM_TRT_C_API int glm_trt_default_options(glm_trt_options* options);

/* backend: "tensorrt" or "tensorrt-rtx", or NULL for the default; checkpoint: NULL, or where the weights lie if they moved. */
GLM_TRT_C_API int glm_trt_load(
    char const* bundle, char const* backend, char const* checkpoint, glm_trt_runtime** runtime);
GLM_TRT_C_API void glm_trt_free(glm_trt_runtime* runtime); /* its sequences may go on */
GLM_TRT_C_API int64_t glm_trt_vocab_size(glm_trt_runtime const* runtime);
GLM_TRT_C_API int64_t glm_trt_max_seq_len(glm_trt_runtime const* runtime);

GLM_TRT_C_API int glm_trt_sequence_new(glm_trt_runtime* runtime, glm_trt_sequence** sequence);
GLM_TRT_C_API void glm_trt_sequence_free(glm_trt_sequence* sequence);
GLM_TRT_C_API int glm_trt_sequence_reset(glm_trt_sequence* sequence);
GLM_TRT_C_API int64_t glm_trt_sequence_length(glm_trt_sequence const* sequence);
/* ids [count]; logits float [vocab] of the last token, or NULL. */
GLM_TRT_C_API int glm_trt_append(glm_trt_sequence* sequence, int64_t const* ids, int64_t count, float* logits);
/* ids [count]; on_token may be NULL; made: how many tokens came, of which up to max_new_tokens go to tokens. */
GLM_TRT_C_API int glm_trt_generate(glm_trt_sequence* sequence, int64_t const* ids, int64_t count,
    glm_trt_options const* options, glm_trt_on_token on_token, void* user, int64_t* tokens, int64_t* made);

#ifdef __cplusplus
}
#endif

#endif
