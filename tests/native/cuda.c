/* CUDA backends for tests/ops.py. */
#include "cuda/cuda.h"

#include <stdio.h>

#include "core/backend.h"
#include "core/err.h"

#define EXPORT __attribute__((visibility("default")))

/* The driver and the libraries of a folder. */
EXPORT int ops_cuda_libraries(const char *folder) {
    static const char *const names[] = {"libcuda.so.1", "libnvrtc.so.13", "libcublasLt.so.13", "libcudnn.so.9"};
    char paths[4][512];
    int version;
    for (size_t i = 0; i < 4; i++) snprintf(paths[i], sizeof paths[i], "%s/%s", folder, names[i]);
    SID_TRY(sid_cuda_driver(paths[0], &version));
    return sid_cuda_libraries(paths[1], paths[2], paths[3]);
}

EXPORT int ops_cuda_open(sid_backend **backend, int dtype, int threads) {
    return sid_cuda_open(backend, (sid_dtype)dtype, 0, threads);
}
