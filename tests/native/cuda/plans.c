/* Runs csrc/cuda/plan.c with the real cuDNN and the properties of a device that does not exist here; called by
 * ctypes. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "core/err.h"
#include "cuda/plan.h"

static sid_nvidia nvidia;
static sid_planner planner;

const char *plans_error(void);
const char *plans_error(void) { return sid_error(); }

/* Returns the version of the library at the path, or 0 if it cannot be used. */
int plans_open(const char *path);
int plans_open(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (!library) return sid_fail(0, "%s", dlerror());
#define RESOLVE(result, name, arguments)                  \
    {                                                     \
        void *function = dlsym(library, #name);           \
        if (!function) return sid_fail(0, "no " #name);   \
        memcpy(&nvidia.name, &function, sizeof function); \
    }
    SID_CUDNN_FUNCTIONS(RESOLVE)
    planner.nv = &nvidia;
    return (int)nvidia.cudnnGetVersion();
}

/* Sets the device that is planned for. Returns 0 if this succeeded. */
int plans_device(const char *json);
int plans_device(const char *json) {
    int status = nvidia.cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &planner.properties);
    if (!status)
        status = nvidia.cudnnBackendSetAttribute(planner.properties, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION,
                                                 CUDNN_TYPE_CHAR, (int64_t)strlen(json), json);
    if (!status) status = nvidia.cudnnBackendFinalize(planner.properties);
    if (!status) return 0;
    char words[512];
    nvidia.cudnnGetLastErrorString(words, sizeof words);
    return sid_fail(status, "%s", words);
}

/* Returns the workspace of a plan in bytes, or -1 if there is no plan. numbers are those of sid_plan_shape, in its
 * order. */
long plans_workspace(const int64_t *numbers);
long plans_workspace(const int64_t *numbers) {
    sid_plan plan;
    sid_plan_shape shape = {numbers[0],
                            numbers[1],
                            numbers[2],
                            numbers[3],
                            numbers[4],
                            numbers[5],
                            numbers[6],
                            numbers[7],
                            numbers[8],
                            numbers[9],
                            numbers[10],
                            numbers[11],
                            (sid_dtype)numbers[12],
                            (int)numbers[13],
                            (int)numbers[14],
                            0};
    if (sid_plan_open(&planner, &plan, &shape) != SID_OK) return -1;
    long workspace = (long)plan.workspace;
    sid_plan_close(&planner, &plan);
    return workspace;
}
