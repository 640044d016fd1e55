/* The fakes of NVIDIA's libraries share a driver, whose streams do nothing until something waits for them, and whose
 * memory only their work may touch. */
#ifndef FAKE_H
#define FAKE_H

#include <stddef.h>
#include <stdint.h>

#include "cuda/nvidia.h"

#define EXPORT __attribute__((visibility("default")))

/* Statuses of NVIDIA's that only the fakes return. */
enum {
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_ILLEGAL_ADDRESS = 700,
    CUDA_ERROR_LAUNCH_FAILED = 719,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
};

/* The work of a stream. It is called with a copy of the arguments once something waits for it. */
typedef void (*fake_work)(void *arguments);
CUresult fake_enqueue(CUstream stream, fake_work work, const void *arguments, size_t size);

/* Whether all bytes are in one block of the device that has not been given back. */
int fake_is_device(const void *data, size_t size);

/* Prints the caller's mistake and ends the process, for mistakes that hardware would answer with wrong results. */
void fake_refuse(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* Returns the status that the function has been told to fail with at this call, or 0. */
int fake_failure(const char *function);

/* Returns a number from the environment's STYLEID_FAKE_... variables. */
long fake_setting(const char *name, long otherwise);

#endif
