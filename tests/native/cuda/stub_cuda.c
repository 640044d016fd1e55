/* A libcuda.so.1 beside which cuDNN can be loaded on a machine without a driver. cuDNN plans from given properties
 * of a device, and every call of the driver fails. */
/* The formatter would change these lines at every run. */
/* clang-format off */
#define CALLS(X)                                                                                                    \
    X(cuCtxGetCurrent)                                                                                              \
    X(cuCtxGetLimit) X(cuCtxPopCurrent) X(cuCtxPushCurrent) X(cuDeviceGet) X(cuDeviceGetCount) X(cuGetErrorName)    \
        X(cuGetErrorString) X(cuKernelGetAttribute) X(cuKernelGetFunction) X(cuKernelSetAttribute)                  \
            X(cuLaunchCooperativeKernel) X(cuLaunchKernel) X(cuLaunchKernelEx) X(cuLibraryGetKernel)                \
                X(cuLibraryLoadData) X(cuLibraryLoadFromFile) X(cuLibraryUnload) X(cuLinkAddData) X(cuLinkComplete) \
                    X(cuLinkCreate) X(cuLinkDestroy) X(cuModuleGetFunction) X(cuModuleLoadData) X(cuModuleUnload)   \
                        X(cuOccupancyMaxPotentialClusterSize) X(cuStreamGetCtx) X(cuTensorMapEncodeIm2col)          \
                            X(cuTensorMapEncodeTiled)
/* clang-format on */

#define NO_DEVICE 100
#define DEFINE(name) \
    int name(void);  \
    int name(void) { return NO_DEVICE; }
CALLS(DEFINE)

int cuDriverGetVersion(int *version);
int cuDriverGetVersion(int *version) {
    *version = 13000;
    return 0;
}
