/* CUDA backends, for tests/ops.py. */
#include "cuda/cuda.h"

#include "core/backend.h"
#include "core/err.h"

#define EXPORT __attribute__((visibility("default")))

/* Opens the driver, NVRTC, cuBLASLt and cuDNN at these paths. */
EXPORT int ops_cuda_libraries(const char *driver, const char *nvrtc, const char *cublaslt, const char *cudnn) {
    int version;
    SID_TRY(sid_cuda_driver(driver, &version));
    return sid_cuda_libraries(nvrtc, cublaslt, cudnn);
}

EXPORT int ops_cuda_open(sid_backend **backend, int dtype, int threads) {
    return sid_cuda_open(backend, (sid_dtype)dtype, 0, threads);
}
