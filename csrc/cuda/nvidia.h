/* The parts of NVIDIA's libraries that are used, declared by hand because their headers are not redistributed. Names
 * and values are theirs; enumerations are passed as int. tests/test_cuda_abi.py compares all of it with the real
 * headers. */
#ifndef SID_CUDA_NVIDIA_H
#define SID_CUDA_NVIDIA_H

#include <stddef.h>
#include <stdint.h>

typedef int CUresult, CUdevice, nvrtcResult, cublasStatus_t, cudnnStatus_t;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphNode_st *CUgraphNode;
typedef struct CUgraphExec_st *CUgraphExec;
typedef struct CUmemPoolHandle_st *CUmemoryPool;
typedef struct _nvrtcProgram *nvrtcProgram;
typedef struct cublasLtContext *cublasLtHandle_t;
typedef struct cudnnContext *cudnnHandle_t;
typedef void *cudnnBackendDescriptor_t;

typedef struct {
    int allocType, handleTypes;
    struct {
        int type, id;
    } location;
    void *win32SecurityAttributes;
    size_t maxSize;
    unsigned short usage;
    unsigned char reserved[54];
} CUmemPoolProps;

typedef struct {
    CUfunction func;
    unsigned gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes;
    void **kernelParams, **extra;
    void *kern, *ctx;
} CUDA_KERNEL_NODE_PARAMS;

typedef struct {
    uint64_t data[8];
} cublasLtMatmulAlgo_t;
typedef void *cublasLtMatmulDesc_t, *cublasLtMatrixLayout_t, *cublasLtMatmulPreference_t;
typedef struct {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    cublasStatus_t state;
    float wavesCount;
    int reserved[4];
} cublasLtMatmulHeuristicResult_t;

enum { /* the driver */
       CUDA_SUCCESS = 0,
       CUDA_ERROR_OUT_OF_MEMORY = 2,
       CUDA_ERROR_NO_DEVICE = 100,
       CUDA_ERROR_DEINITIALIZED = 4,
       CU_STREAM_NON_BLOCKING = 1,
       CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
       CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
       CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED = 115,
       CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
       CU_EVENT_DISABLE_TIMING = 2,
       CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1,
       CU_MEM_ALLOCATION_TYPE_PINNED = 1,
       CU_MEM_LOCATION_TYPE_DEVICE = 1,
       CU_MEMPOOL_ATTR_RELEASE_THRESHOLD = 4,
};

enum { /* NVRTC */
       NVRTC_SUCCESS = 0,
       NVRTC_ERROR_COMPILATION = 6,
};

enum { /* cuBLASLt */
       CUDA_R_32F = 0,
       CUDA_R_16F = 2,
       CUDA_R_16BF = 14,
       CUBLAS_COMPUTE_32F = 68,
       CUBLAS_OP_N = 0,
       CUBLAS_OP_T = 1,
       CUBLASLT_MATMUL_DESC_TRANSA = 3,
       CUBLASLT_MATMUL_DESC_EPILOGUE = 7,
       CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8,
       CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE = 26,
       CUBLASLT_EPILOGUE_DEFAULT = 1,
       CUBLASLT_EPILOGUE_BIAS = 4,
       CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
       CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
       CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
       CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
       CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8,
       CUBLAS_STATUS_SUCCESS = 0,
       CUBLAS_STATUS_ALLOC_FAILED = 3,
       CUBLAS_STATUS_NOT_SUPPORTED = 15,
       CUBLAS_STATUS_INVALID_VALUE = 7,
};

enum { /* cuDNN */
       CUDNN_STATUS_SUCCESS = 0,
       CUDNN_STATUS_NOT_SUPPORTED = 3000,
       CUDNN_STATUS_BAD_PARAM = 2000,
       CUDNN_STATUS_ALLOC_FAILED = 4003,
       CUDNN_DATA_FLOAT = 0,
       CUDNN_DATA_HALF = 2,
       CUDNN_DATA_BFLOAT16 = 9,
       CUDNN_POINTWISE_ADD = 0,
       CUDNN_POINTWISE_RELU_FWD = 100,
       CUDNN_CROSS_CORRELATION = 1,
       CUDNN_HEUR_MODE_A = 3,
       CUDNN_HEUR_MODE_FALLBACK = 2,
       CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC = 4,
       CUDNN_NUMERICAL_NOTE_TENSOR_CORE = 0,
       CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS = 1,
       CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION = 0,
       CUDNN_TYPE_HANDLE = 0,
       CUDNN_TYPE_DATA_TYPE = 1,
       CUDNN_TYPE_BOOLEAN = 2,
       CUDNN_TYPE_INT64 = 3,
       CUDNN_TYPE_DOUBLE = 5,
       CUDNN_TYPE_VOID_PTR = 6,
       CUDNN_TYPE_CONVOLUTION_MODE = 7,
       CUDNN_TYPE_HEUR_MODE = 8,
       CUDNN_TYPE_NUMERICAL_NOTE = 11,
       CUDNN_TYPE_BEHAVIOR_NOTE = 19,
       CUDNN_TYPE_BACKEND_DESCRIPTOR = 15,
       CUDNN_TYPE_POINTWISE_MODE = 14,
       CUDNN_TYPE_CHAR = 24,
       CUDNN_BACKEND_TENSOR_DESCRIPTOR = 17,
       CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR = 1,
       CUDNN_BACKEND_POINTWISE_DESCRIPTOR = 0,
       CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR = 10,
       CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR = 13,
       CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR = 15,
       CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR = 4,
       CUDNN_BACKEND_ENGINECFG_DESCRIPTOR = 3,
       CUDNN_BACKEND_ENGINE_DESCRIPTOR = 2,
       CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR = 5,
       CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR = 16,
       CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR = 38,
       CUDNN_ATTR_TENSOR_DATA_TYPE = 901,
       CUDNN_ATTR_TENSOR_DIMENSIONS = 902,
       CUDNN_ATTR_TENSOR_STRIDES = 903,
       CUDNN_ATTR_TENSOR_UNIQUE_ID = 906,
       CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT = 900,
       CUDNN_ATTR_TENSOR_IS_VIRTUAL = 907,
       CUDNN_ATTR_CONVOLUTION_COMP_TYPE = 100,
       CUDNN_ATTR_CONVOLUTION_CONV_MODE = 101,
       CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS = 106,
       CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS = 105,
       CUDNN_ATTR_CONVOLUTION_POST_PADDINGS = 104,
       CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES = 103,
       CUDNN_ATTR_CONVOLUTION_DILATIONS = 102,
       CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC = 702,
       CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X = 704,
       CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W = 703,
       CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y = 705,
       CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA = 700,
       CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA = 701,
       CUDNN_ATTR_POINTWISE_MODE = 0,
       CUDNN_ATTR_POINTWISE_MATH_PREC = 1,
       CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR = 750,
       CUDNN_ATTR_OPERATION_POINTWISE_XDESC = 751,
       CUDNN_ATTR_OPERATION_POINTWISE_BDESC = 752,
       CUDNN_ATTR_OPERATION_POINTWISE_YDESC = 753,
       CUDNN_ATTR_OPERATIONGRAPH_HANDLE = 800,
       CUDNN_ATTR_OPERATIONGRAPH_OPS = 801,
       CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH = 201,
       CUDNN_ATTR_ENGINEHEUR_MODE = 200,
       CUDNN_ATTR_ENGINEHEUR_DEVICEPROP = 204,
       CUDNN_ATTR_ENGINEHEUR_RESULTS = 202,
       CUDNN_ATTR_ENGINECFG_ENGINE = 300,
       CUDNN_ATTR_ENGINE_NUMERICAL_NOTE = 1303,
       CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE = 1305,
       CUDNN_ATTR_EXECUTION_PLAN_HANDLE = 400,
       CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG = 401,
       CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE = 402,
       CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP = 407,
       CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS = 1000,
       CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS = 1001,
       CUDNN_ATTR_VARIANT_PACK_WORKSPACE = 1003,
       CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION = 2702,
       CUDNN_ATTR_DEVICEPROP_DEVICE_ID = 2700,
};

/* Every function that is called, as X(result, name, arguments). */
#define SID_DRIVER_FUNCTIONS(X)                                                                                      \
    X(CUresult, cuInit, (unsigned flags))                                                                            \
    X(CUresult, cuDriverGetVersion, (int *version))                                                                  \
    X(CUresult, cuGetErrorName, (CUresult error, const char **name))                                                 \
    X(CUresult, cuGetErrorString, (CUresult error, const char **text))                                               \
    X(CUresult, cuDeviceGetCount, (int *count))                                                                      \
    X(CUresult, cuDeviceGet, (CUdevice * device, int ordinal))                                                       \
    X(CUresult, cuDeviceGetName, (char *name, int size, CUdevice device))                                            \
    X(CUresult, cuDeviceGetAttribute, (int *value, int attribute, CUdevice device))                                  \
    X(CUresult, cuDeviceTotalMem_v2, (size_t *bytes, CUdevice device))                                               \
    X(CUresult, cuDevicePrimaryCtxRetain, (CUcontext * context, CUdevice device))                                    \
    X(CUresult, cuDevicePrimaryCtxRelease_v2, (CUdevice device))                                                     \
    X(CUresult, cuCtxPushCurrent_v2, (CUcontext context))                                                            \
    X(CUresult, cuCtxPopCurrent_v2, (CUcontext * context))                                                           \
    X(CUresult, cuMemGetInfo_v2, (size_t *available, size_t *total))                                                 \
    X(CUresult, cuMemPoolCreate, (CUmemoryPool * pool, const CUmemPoolProps *properties))                            \
    X(CUresult, cuMemPoolSetAttribute, (CUmemoryPool pool, int attribute, void *value))                              \
    X(CUresult, cuMemPoolTrimTo, (CUmemoryPool pool, size_t keep))                                                   \
    X(CUresult, cuMemPoolDestroy, (CUmemoryPool pool))                                                               \
    X(CUresult, cuMemAllocFromPoolAsync, (CUdeviceptr * block, size_t size, CUmemoryPool pool, CUstream stream))     \
    X(CUresult, cuMemFreeAsync, (CUdeviceptr block, CUstream stream))                                                \
    X(CUresult, cuMemAlloc_v2, (CUdeviceptr * block, size_t size))                                                   \
    X(CUresult, cuMemFree_v2, (CUdeviceptr block))                                                                   \
    X(CUresult, cuMemHostAlloc, (void **block, size_t size, unsigned flags))                                         \
    X(CUresult, cuMemFreeHost, (void *block))                                                                        \
    X(CUresult, cuMemcpyHtoDAsync_v2, (CUdeviceptr to, const void *from, size_t size, CUstream stream))              \
    X(CUresult, cuMemcpyDtoHAsync_v2, (void *to, CUdeviceptr from, size_t size, CUstream stream))                    \
    X(CUresult, cuMemcpyDtoDAsync_v2, (CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream))              \
    X(CUresult, cuMemsetD8Async, (CUdeviceptr to, unsigned char value, size_t size, CUstream stream))                \
    X(CUresult, cuStreamCreate, (CUstream * stream, unsigned flags))                                                 \
    X(CUresult, cuStreamDestroy_v2, (CUstream stream))                                                               \
    X(CUresult, cuStreamSynchronize, (CUstream stream))                                                              \
    X(CUresult, cuStreamWaitEvent, (CUstream stream, CUevent event, unsigned flags))                                 \
    X(CUresult, cuEventCreate, (CUevent * event, unsigned flags))                                                    \
    X(CUresult, cuEventRecord, (CUevent event, CUstream stream))                                                     \
    X(CUresult, cuEventSynchronize, (CUevent event))                                                                 \
    X(CUresult, cuEventDestroy_v2, (CUevent event))                                                                  \
    X(CUresult, cuModuleLoadData, (CUmodule * module, const void *image))                                            \
    X(CUresult, cuModuleUnload, (CUmodule module))                                                                   \
    X(CUresult, cuModuleGetFunction, (CUfunction * function, CUmodule module, const char *name))                     \
    X(CUresult, cuLaunchKernel,                                                                                      \
      (CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,   \
       unsigned block_z, unsigned shared, CUstream stream, void **parameters, void **extra))                         \
    X(CUresult, cuStreamBeginCapture_v2, (CUstream stream, int mode))                                                \
    X(CUresult, cuStreamEndCapture, (CUstream stream, CUgraph * graph))                                              \
    X(CUresult, cuStreamGetCaptureInfo_v2,                                                                           \
      (CUstream stream, int *status, uint64_t *id, CUgraph *graph, const CUgraphNode **dependencies, size_t *count)) \
    X(CUresult, cuGraphInstantiateWithFlags, (CUgraphExec * exec, CUgraph graph, unsigned long long flags))          \
    X(CUresult, cuGraphLaunch, (CUgraphExec exec, CUstream stream))                                                  \
    X(CUresult, cuGraphExecKernelNodeSetParams_v2,                                                                   \
      (CUgraphExec exec, CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS *parameters))                               \
    X(CUresult, cuGraphExecDestroy, (CUgraphExec exec))                                                              \
    X(CUresult, cuGraphDestroy, (CUgraph graph))

#define SID_NVRTC_FUNCTIONS(X)                                                                                     \
    X(nvrtcResult, nvrtcVersion, (int *major, int *minor))                                                         \
    X(nvrtcResult, nvrtcGetNumSupportedArchs, (int *count))                                                        \
    X(nvrtcResult, nvrtcGetSupportedArchs, (int *architectures))                                                   \
    X(const char *, nvrtcGetErrorString, (nvrtcResult error))                                                      \
    X(nvrtcResult, nvrtcCreateProgram,                                                                             \
      (nvrtcProgram * program, const char *source, const char *name, int header_count, const char *const *headers, \
       const char *const *header_names))                                                                           \
    X(nvrtcResult, nvrtcCompileProgram, (nvrtcProgram program, int option_count, const char *const *options))      \
    X(nvrtcResult, nvrtcGetProgramLogSize, (nvrtcProgram program, size_t *size))                                   \
    X(nvrtcResult, nvrtcGetProgramLog, (nvrtcProgram program, char *log))                                          \
    X(nvrtcResult, nvrtcGetCUBINSize, (nvrtcProgram program, size_t *size))                                        \
    X(nvrtcResult, nvrtcGetCUBIN, (nvrtcProgram program, char *cubin))                                             \
    X(nvrtcResult, nvrtcGetPTXSize, (nvrtcProgram program, size_t *size))                                          \
    X(nvrtcResult, nvrtcGetPTX, (nvrtcProgram program, char *ptx))                                                 \
    X(nvrtcResult, nvrtcDestroyProgram, (nvrtcProgram * program))

#define SID_CUBLASLT_FUNCTIONS(X)                                                                                 \
    X(size_t, cublasLtGetVersion, (void))                                                                         \
    X(const char *, cublasLtGetStatusString, (cublasStatus_t status))                                             \
    X(cublasStatus_t, cublasLtCreate, (cublasLtHandle_t * handle))                                                \
    X(cublasStatus_t, cublasLtDestroy, (cublasLtHandle_t handle))                                                 \
    X(cublasStatus_t, cublasLtMatmulDescCreate, (cublasLtMatmulDesc_t * product, int compute, int scale))         \
    X(cublasStatus_t, cublasLtMatmulDescDestroy, (cublasLtMatmulDesc_t product))                                  \
    X(cublasStatus_t, cublasLtMatmulDescSetAttribute,                                                             \
      (cublasLtMatmulDesc_t product, int attribute, const void *value, size_t size))                              \
    X(cublasStatus_t, cublasLtMatrixLayoutCreate,                                                                 \
      (cublasLtMatrixLayout_t * layout, int type, uint64_t rows, uint64_t columns, int64_t stride))               \
    X(cublasStatus_t, cublasLtMatrixLayoutDestroy, (cublasLtMatrixLayout_t layout))                               \
    X(cublasStatus_t, cublasLtMatmulPreferenceCreate, (cublasLtMatmulPreference_t * preference))                  \
    X(cublasStatus_t, cublasLtMatmulPreferenceDestroy, (cublasLtMatmulPreference_t preference))                   \
    X(cublasStatus_t, cublasLtMatmulPreferenceSetAttribute,                                                       \
      (cublasLtMatmulPreference_t preference, int attribute, const void *value, size_t size))                     \
    X(cublasStatus_t, cublasLtMatmulAlgoGetHeuristic,                                                             \
      (cublasLtHandle_t handle, cublasLtMatmulDesc_t product, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, \
       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int requested,  \
       cublasLtMatmulHeuristicResult_t *results, int *count))                                                     \
    X(cublasStatus_t, cublasLtMatmul,                                                                             \
      (cublasLtHandle_t handle, cublasLtMatmulDesc_t product, const void *alpha, const void *a,                   \
       cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout, const void *beta,         \
       const void *c, cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout,                  \
       const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_size, CUstream stream))

#define SID_CUDNN_FUNCTIONS(X)                                                                                     \
    X(size_t, cudnnGetVersion, (void))                                                                             \
    X(size_t, cudnnGetCudartVersion, (void))                                                                       \
    X(const char *, cudnnGetErrorString, (cudnnStatus_t status))                                                   \
    X(void, cudnnGetLastErrorString, (char *text, size_t size))                                                    \
    X(cudnnStatus_t, cudnnCreate, (cudnnHandle_t * handle))                                                        \
    X(cudnnStatus_t, cudnnDestroy, (cudnnHandle_t handle))                                                         \
    X(cudnnStatus_t, cudnnSetStream, (cudnnHandle_t handle, CUstream stream))                                      \
    X(cudnnStatus_t, cudnnBackendCreateDescriptor, (int type, cudnnBackendDescriptor_t *descriptor))               \
    X(cudnnStatus_t, cudnnBackendDestroyDescriptor, (cudnnBackendDescriptor_t descriptor))                         \
    X(cudnnStatus_t, cudnnBackendFinalize, (cudnnBackendDescriptor_t descriptor))                                  \
    X(cudnnStatus_t, cudnnBackendSetAttribute,                                                                     \
      (cudnnBackendDescriptor_t descriptor, int attribute, int type, int64_t count, const void *values))           \
    X(cudnnStatus_t, cudnnBackendGetAttribute,                                                                     \
      (cudnnBackendDescriptor_t descriptor, int attribute, int type, int64_t asked, int64_t *count, void *values)) \
    X(cudnnStatus_t, cudnnBackendExecute,                                                                          \
      (cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack))

#define SID_MEMBER(result, name, arguments) result(*name) arguments;

/* The functions of one installation. */
typedef struct {
    int major;  /* the CUDA version that the libraries are built for */
    int driver; /* what the driver supports: 1000 * major + 10 * minor */
    SID_DRIVER_FUNCTIONS(SID_MEMBER)
    SID_NVRTC_FUNCTIONS(SID_MEMBER)
    SID_CUBLASLT_FUNCTIONS(SID_MEMBER)
    SID_CUDNN_FUNCTIONS(SID_MEMBER)
} sid_nvidia;

/* Gets the driver alone, which is enough to list devices. It is opened once, and *nvidia stays valid for the
 * process. Returns SID_EVALUE with a text that says what to install if it is missing. */
int sid_nvidia_driver(const sid_nvidia **nvidia);
/* Gets the driver and the libraries. */
int sid_nvidia_open(const sid_nvidia **nvidia);

#endif
