/* NVIDIA's libraries and devices, for whoever opens models. Nothing is loaded before it is asked for. */
#ifndef SID_CUDA_CUDA_H
#define SID_CUDA_CUDA_H

#include <stddef.h>

#define SID_CUDA_LEAST_ARCHITECTURE 75

/* Opens the driver at the given path or name, once for the process: later calls only return its version, which is
 * 1000 * major + 10 * minor of the latest CUDA that it supports. Returns SID_EVALUE if there is none. */
int sid_cuda_driver(const char *path, int *version);

/* Opens the other libraries, which have to be of one CUDA version, once for the process, after the driver. A library
 * that is loaded already is preferred to the one at the path. Returns SID_EVALUE with a text that says what to
 * install or update. */
int sid_cuda_libraries(const char *nvrtc, const char *cublaslt, const char *cudnn);

/* The versions of the opened libraries, major * 10000 + minor * 100 + patch; 0 if they are not open. */
typedef struct {
    int driver, nvrtc, cublaslt, cudnn;
} sid_cuda_versions;
void sid_cuda_describe(sid_cuda_versions *versions);

/* A device; describing it needs the driver only. */
typedef struct {
    char name[128];
    int architecture; /* 10 * major + minor of the compute capability */
    size_t total;     /* bytes of memory */
} sid_cuda_device;
int sid_cuda_device_count(int *count);
int sid_cuda_describe_device(sid_cuda_device *description, int device);

/* Gets the bytes that are free. This makes the device's context, which takes memory and time, if the process has
 * none. */
int sid_cuda_free_memory(size_t *bytes, int device);

#endif
