/* The CUDA backend, for tests/ops.py. */
#include "core/backend.h"
#include "core/err.h"
#include "cuda/cuda.h"

#define EXPORT __attribute__((visibility("default")))

/* Opens a backend; paths are those of the driver, NVRTC, cuBLASLt and cuDNN. */
EXPORT int ops_cuda_open(sid_backend **backend, const char *const *paths, int dtype, int threads) {
    int version;
    SID_TRY(sid_cuda_driver(paths[0], &version));
    SID_TRY(sid_cuda_libraries(paths[1], paths[2], paths[3]));
    return sid_cuda_open(backend, (sid_dtype)dtype, 0, threads);
}
