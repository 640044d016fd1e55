/* What the operations of this backend are written with: the backend itself, kernels, launches and memory.
 *
 * While an arena measures, an operation looks up its kernels, which compiles them, takes its scratch and calls the
 * same functions as in a run. sid_launch(), write, read, copy and zero then do nothing. */
#ifndef SID_CUDA_LAUNCH_H
#define SID_CUDA_LAUNCH_H

#include <pthread.h>
#include <sys/types.h>

#include "core/backend.h"
#include "cuda/nvidia.h"

typedef struct sid_modules sid_modules;
typedef struct sid_recorder sid_recorder;

#define SID_STAGING_SLOTS 2
#define SID_STAGING_SIZE ((size_t)32 << 20)
/* Pinned host memory that uploads pass through. */
typedef struct {
    void *slots[SID_STAGING_SLOTS];  /* NULL until the first upload */
    CUevent done[SID_STAGING_SLOTS]; /* recorded after the last transfer from a full slot */
    size_t slot, used;               /* the slot that is being filled, and its bytes in use */
} sid_staging;

#define SID_PACE_EVENTS 4

typedef struct {
    sid_backend base;         /* the first member, so that a sid_backend * is a sid_cuda * */
    const sid_nvidia *nv;     /* the libraries' functions */
    int device, architecture; /* 75, 80, 86, 90, ... */
    char name[160];           /* "cuda:0 (NVIDIA A100)" */
    CUcontext context;
    CUstream stream;
    CUmemoryPool pool; /* NULL if the device has none */
    cublasLtHandle_t blas;
    cudnnHandle_t dnn;
    sid_modules *modules;
    sid_recorder *recorder;
    sid_staging staging;
    CUevent ends[SID_PACE_EVENTS]; /* recorded at the ends of the last runs */
    size_t runs;
    pid_t process;          /* the process that opened it: contexts do not survive fork() */
    int *overflow;          /* in device memory: set to 1 where mix met a number that is not finite */
    pthread_mutex_t lock;   /* recursive; held by a run from begin to end, and by any other use of the stream */
    pthread_mutex_t tables; /* guards kernels and plans, which are looked up while others run; taken after `lock` */
    uint64_t serials;       /* the serial that the last plan was given */
} sid_cuda;

static inline sid_cuda *sid_cuda_of(const sid_exec *exec) { return (sid_cuda *)exec->backend; }

/* --- device.c --- */

/* Returns SID_OK for CUDA_SUCCESS; else SID_EMEMORY or SID_EINTERNAL with the device's name, what was done and the
 * driver's words. */
int sid_cuda_check(const sid_cuda *cuda, CUresult result, const char *what);
#define SID_CU(cuda, call) SID_TRY(sid_cuda_check(cuda, (cuda)->nv->call, #call))

/* Enter makes the device's context the thread's own, and leave restores the former one. They nest. */
void sid_cuda_enter(const sid_cuda *cuda);
void sid_cuda_leave(const sid_cuda *cuda);

/* Opens the context, the stream, the memory pool and the libraries' handles. */
int sid_device_open(sid_cuda *cuda);
void sid_device_close(sid_cuda *cuda);

int sid_cuda_take(sid_memory *memory, void **block, size_t size, const char *what);
void sid_cuda_give(sid_memory *memory, void *block);
int sid_cuda_write(sid_exec *exec, void *block, const void *host, size_t size);
int sid_cuda_read(sid_exec *exec, void *host, const void *block, size_t size);

/* --- module.c --- */

/* The files of csrc/cuda/kernels, as X(SID_CU_ name, file). */
#define SID_CU_FILES(X)               \
    X(POINTWISE, pointwise)           \
    X(NORM, norm)                     \
    X(CONV, conv)                     \
    X(PACK, pack)                     \
    X(ATTENTION, attention)           \
    X(ATTENTION_WIDE, attention_wide) \
    X(ATTENTION_FLOAT, attention_float)

#define SID_CU_ENTRY(name, file) SID_CU_##name,
typedef enum { SID_CU_FILES(SID_CU_ENTRY) SID_CU_COUNT } sid_cu;
#undef SID_CU_ENTRY

typedef struct sid_kernel sid_kernel;

int sid_modules_open(sid_cuda *cuda);
void sid_modules_close(sid_cuda *cuda);

/* Finds a kernel of the file: an extern "C" __global__ function of exactly one parameter, a structure of at most 4
 * KB by value. It is compiled with -DSID_T=sid_dtype of the backend, -DSID_ARCH=architecture and `options`
 * ("-DSID_DP=64"; "" for none) at the first call, unless the disk cache has it, and looked up later. */
int sid_kernel_find(sid_cuda *cuda, const sid_kernel **kernel, sid_cu file, const char *name, const char *options);
CUfunction sid_kernel_function(const sid_kernel *kernel);
const char *sid_kernel_name(const sid_kernel *kernel);

/* --- record.c --- */

typedef struct {
    unsigned x, y, z; /* numbers of blocks, each at least 1 */
    unsigned threads; /* threads of a block */
} sid_grid;

/* Launches on the backend's stream; the parameters are copied. In a recorded run the launch is captured, or it is
 * compared with what was captured and patched where only the parameters differ. So the order, number and grids of
 * launches may depend on shapes, dtypes and what the run's key stands for, and on nothing else. */
int sid_launch(sid_exec *exec, const sid_kernel *kernel, sid_grid grid, const void *parameters, size_t size);

int sid_cuda_copy(sid_exec *exec, void *block, const void *from, size_t size);
int sid_cuda_zero(sid_exec *exec, void *block, size_t size);

/* A call into a library that uses the stream. It is made where it has to be; a replay of a recorded run only
 * compares its identity: bytes that stand for the call and its pointers. */
typedef struct {
    int (*call)(sid_exec *exec, const void *arguments);
    const void *arguments, *identity;
    size_t identity_size;
} sid_library_call;
int sid_record_call(sid_exec *exec, const sid_library_call *call);

/* Announces work that cannot be recorded: a recorded run is given up, and will be run once more. */
int sid_record_interrupt(sid_cuda *cuda);

int sid_recorder_open(sid_cuda *cuda);
void sid_recorder_close(sid_cuda *cuda);
int sid_cuda_begin(sid_exec *exec, uint64_t key);
int sid_cuda_end(sid_exec *exec, int status, int *again);
int sid_cuda_pace(sid_backend *backend, size_t runs);

/* --- linear.c, conv.c --- */

int sid_cuda_linear_open(sid_backend *backend, sid_linear **linear, const sid_linear_shape *shape, size_t parts,
                         const sid_weight *const *weights, const sid_weight *const *biases);
void sid_cuda_linear_close(sid_linear **linear);
int sid_cuda_linear(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_linear *linear, const sid_post *post);

int sid_cuda_conv_open(sid_backend *backend, sid_conv **conv, const sid_conv_shape *shape, const sid_weight *weight,
                       const sid_weight *bias);
void sid_cuda_conv_close(sid_conv **conv);
int sid_cuda_conv(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_conv *conv, const sid_post *post);

#endif
