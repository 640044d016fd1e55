/* Finds the driver and the libraries at run time, so that one module serves machines with and without a GPU. */
#include "cuda/cuda.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#include "core/err.h"
#include "cuda/nvidia.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static sid_nvidia nvidia; /* major and driver are 0 until the libraries and the driver are open */

/* A member of sid_nvidia and the name of its symbol. */
typedef struct {
    const char *name;
    size_t offset;
} symbol;

#define SYMBOL(result, name, arguments) {#name, offsetof(sid_nvidia, name)},
static const symbol driver_symbols[] = {SID_DRIVER_FUNCTIONS(SYMBOL)};
static const symbol nvrtc_symbols[] = {SID_NVRTC_FUNCTIONS(SYMBOL)};
static const symbol cublaslt_symbols[] = {SID_CUBLASLT_FUNCTIONS(SYMBOL)};
static const symbol cudnn_symbols[] = {SID_CUDNN_FUNCTIONS(SYMBOL)};
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Libraries stay open to the end of the process, because contexts and other users may need them. */
static int load(sid_nvidia *to, const char *path, const symbol *symbols, size_t count) {
    const char *slash = strrchr(path, '/');
    void *library = dlopen(slash ? slash + 1 : path, RTLD_NOW | RTLD_NOLOAD);
    if (!library) library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return sid_fail(SID_EVALUE, "%s", dlerror());
    for (size_t i = 0; i < count; i++) {
        void *function = dlsym(library, symbols[i].name);
        if (!function)
            return sid_fail(SID_EVALUE, "%s has no %s: this version is too old or too new for styleid", path,
                            symbols[i].name);
        memcpy((char *)to + symbols[i].offset, &function, sizeof function);
    }
    return SID_OK;
}

static int load_driver(const char *path) {
    sid_nvidia found = {0};
    if (load(&found, path, driver_symbols, COUNT(driver_symbols)) != SID_OK) {
        char reason[512];
        strncpy(reason, sid_error(), sizeof reason - 1);
        reason[sizeof reason - 1] = 0;
        return strstr(reason, "cannot open") ? sid_fail(SID_EVALUE, "no NVIDIA driver: %s not found", path)
                                             : sid_fail(SID_EVALUE, "no usable NVIDIA driver: %s", reason);
    }
    CUresult result = found.cuInit(0);
    const char *words = "";
    if (result == CUDA_ERROR_NO_DEVICE) return sid_fail(SID_EVALUE, "this machine has no NVIDIA GPU");
    if (result != CUDA_SUCCESS) {
        found.cuGetErrorString(result, &words);
        return sid_fail(SID_EVALUE, "the NVIDIA driver does not start: %s (%d)", words ? words : "unknown error",
                        result);
    }
    found.cuDriverGetVersion(&found.driver);
    nvidia = found;
    return SID_OK;
}

int sid_cuda_driver(const char *path, int *version) {
    pthread_mutex_lock(&lock);
    int status = nvidia.driver ? SID_OK : load_driver(path);
    *version = nvidia.driver;
    pthread_mutex_unlock(&lock);
    return status;
}

/* Checks that the libraries are of one CUDA version, which the driver supports. */
static int check_versions(const sid_nvidia *found) {
    int minor, major, blas = (int)(found->cublasLtGetVersion() / 10000),
                      dnn = (int)(found->cudnnGetCudartVersion() / 1000);
    found->nvrtcVersion(&major, &minor);
    if (major != blas || major != dnn)
        return sid_fail(SID_EVALUE,
                        "the CUDA libraries do not fit each other: NVRTC is of CUDA %d, cuBLASLt of %d, cuDNN of %d; "
                        "pip install --upgrade 'styleid[cuda]', or 'styleid[cuda12]'",
                        major, blas, dnn);
    if (found->cudnnGetVersion() < 90800)
        return sid_fail(SID_EVALUE, "needs cuDNN 9.8 or later, found %zu: pip install --upgrade 'styleid[cuda]'",
                        found->cudnnGetVersion());
    if (found->driver < major * 1000)
        return sid_fail(SID_EVALUE, "needs driver %s or later, found one for CUDA %d.%d: update it%s",
                        major == 13 ? "580" : "525", found->driver / 1000, found->driver % 1000 / 10,
                        major > 12 && found->driver >= 12000 ? ", or pip install 'styleid[cuda12]'" : "");
    return SID_OK;
}

static int load_libraries(const char *nvrtc, const char *cublaslt, const char *cudnn) {
    sid_nvidia found = nvidia;
    if (!found.driver) return sid_fail(SID_EINTERNAL, "the driver has to be opened before the libraries");
    SID_TRY(load(&found, cublaslt, cublaslt_symbols, COUNT(cublaslt_symbols)));
    SID_TRY(load(&found, nvrtc, nvrtc_symbols, COUNT(nvrtc_symbols)));
    SID_TRY(load(&found, cudnn, cudnn_symbols, COUNT(cudnn_symbols)));
    SID_TRY(check_versions(&found));
    int minor;
    found.nvrtcVersion(&found.major, &minor);
    nvidia = found;
    return SID_OK;
}

int sid_cuda_libraries(const char *nvrtc, const char *cublaslt, const char *cudnn) {
    pthread_mutex_lock(&lock);
    int status = nvidia.major ? SID_OK : load_libraries(nvrtc, cublaslt, cudnn);
    pthread_mutex_unlock(&lock);
    return status;
}

int sid_nvidia_driver(const sid_nvidia **found) {
    pthread_mutex_lock(&lock);
    int open = nvidia.driver != 0;
    pthread_mutex_unlock(&lock);
    *found = &nvidia;
    return open ? SID_OK : sid_fail(SID_EVALUE, "the NVIDIA driver has not been opened");
}

int sid_nvidia_open(const sid_nvidia **found) {
    SID_TRY(sid_nvidia_driver(found));
    pthread_mutex_lock(&lock);
    int open = nvidia.major != 0;
    pthread_mutex_unlock(&lock);
    return open ? SID_OK : sid_fail(SID_EVALUE, "the CUDA libraries have not been opened");
}

void sid_cuda_describe(sid_cuda_versions *versions) {
    pthread_mutex_lock(&lock);
    *versions = (sid_cuda_versions){.driver = nvidia.driver / 1000 * 10000 + nvidia.driver % 1000 * 10};
    if (nvidia.major) {
        int major, minor, blas = (int)nvidia.cublasLtGetVersion();
        nvidia.nvrtcVersion(&major, &minor);
        versions->nvrtc = major * 10000 + minor * 100;
        versions->cublaslt = blas; /* it has the same form */
        versions->cudnn = (int)nvidia.cudnnGetVersion();
    }
    pthread_mutex_unlock(&lock);
}
