/* libnvrtc on the host: it "compiles" a kernel's source with the system's C++ compiler and emu.h to a library, which
 * fake_cuda.c takes for a cubin. */
#include "fake.h"

#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NVRTC_ERROR_OUT_OF_MEMORY = 1, NVRTC_ERROR_INVALID_OPTION = 5 };
static const int architectures[] = {75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121};
#define ARCHITECTURES (int)(sizeof architectures / sizeof *architectures)

extern char **environ;

struct _nvrtcProgram {
    char folder[64], name[64];
    char *image;
    size_t size;
    char *log;
};

EXPORT nvrtcResult nvrtcVersion(int *major, int *minor) {
    *major = (int)fake_setting("CUDA", 13);
    *minor = 0;
    return NVRTC_SUCCESS;
}

EXPORT nvrtcResult nvrtcGetNumSupportedArchs(int *count) {
    *count = ARCHITECTURES;
    return NVRTC_SUCCESS;
}

EXPORT nvrtcResult nvrtcGetSupportedArchs(int *known) {
    memcpy(known, architectures, sizeof architectures);
    return NVRTC_SUCCESS;
}

EXPORT const char *nvrtcGetErrorString(nvrtcResult error) {
    return error ? "a failure of the fake compiler" : "no error";
}

static void write_text(const char *folder, const char *name, const char *text) {
    char path[192];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    if (!file || fputs(text, file) < 0 || fclose(file) != 0) fake_refuse("%s cannot be written", path);
}

EXPORT nvrtcResult nvrtcCreateProgram(nvrtcProgram *program, const char *source, const char *name, int header_count,
                                      const char *const *headers, const char *const *header_names) {
    int failed = fake_failure(__func__);
    if (failed) return failed;
    nvrtcProgram p = *program = calloc(1, sizeof *p);
    strcpy(p->folder, "/tmp/styleid-fake-XXXXXX");
    if (!mkdtemp(p->folder)) fake_refuse("no folder for a kernel");
    snprintf(p->name, sizeof p->name, "%s", name);
    write_text(p->folder, name, source);
    for (int i = 0; i < header_count; i++) write_text(p->folder, header_names[i], headers[i]);
    return NVRTC_SUCCESS;
}

static char *read_file(const char *path, size_t before, size_t *size) {
    struct stat facts;
    int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &facts) != 0) {
        if (file >= 0) close(file);
        return NULL;
    }
    char *data = calloc(before + (size_t)facts.st_size + 1, 1);
    *size = before + (size_t)facts.st_size;
    if (read(file, data + before, (size_t)facts.st_size) != facts.st_size) fake_refuse("%s cannot be read", path);
    close(file);
    return data;
}

/* Runs the compiler in the program's folder, and stores its messages in `log`. */
static int run_compiler(const char *folder, char *const *arguments) {
    posix_spawn_file_actions_t actions;
    char log[128];
    pid_t child;
    int status = -1;
    snprintf(log, sizeof log, "%s/log", folder);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    if (posix_spawnp(&child, arguments[0], &actions, NULL, arguments, environ) == 0) waitpid(child, &status, 0);
    posix_spawn_file_actions_destroy(&actions);
    return status;
}

/* Whether it is one of NVRTC's options: the language, a supported architecture, or a definition. */
static int is_option(const char *option) {
    int architecture = 0;
    if (strncmp(option, "-D", 2) == 0 || strcmp(option, "-std=c++17") == 0) return 1;
    if (sscanf(option, "--gpu-architecture=sm_%d", &architecture) != 1) return 0;
    for (int i = 0; i < ARCHITECTURES; i++)
        if (architectures[i] == architecture) return 1;
    return 0;
}

EXPORT nvrtcResult nvrtcCompileProgram(nvrtcProgram p, int option_count, const char *const *options) {
    char source[192], library[192], log[192], include[80];
    char *arguments[64] = {"g++",        "-std=c++17", "-O2", "-march=native",  "-ffp-contract=fast",
                           "-fPIC",      "-shared",    "-w",  "-DSID_EMULATED", "-include",
                           SID_EMULATION};
    int count = 11, failed = fake_failure(__func__);
    size_t size;
    snprintf(source, sizeof source, "%s/%s", p->folder, p->name);
    snprintf(library, sizeof library, "%s/kernel.so", p->folder);
    snprintf(include, sizeof include, "-I%s", p->folder);
    snprintf(log, sizeof log, "%s/log", p->folder);
    for (int i = 0; i < option_count; i++) {
        if (!is_option(options[i])) return NVRTC_ERROR_INVALID_OPTION;
        if (options[i][1] == 'D') arguments[count++] = (char *)options[i];
    }
    char *const rest[] = {include, "-x", "c++", source, "-o", library, NULL};
    memcpy(&arguments[count], rest, sizeof rest);
    int status = run_compiler(p->folder, arguments);
    p->log = read_file(log, 0, &size);
    p->image = status == 0 && !failed ? read_file(library, 16, &p->size) : NULL;
    if (!p->image) return failed ? failed : NVRTC_ERROR_COMPILATION;
    uint64_t bytes = p->size - 16;
    memcpy(p->image, "FAKECUB", 8);
    memcpy(p->image + 8, &bytes, 8);
    return NVRTC_SUCCESS;
}

EXPORT nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram p, size_t *size) {
    *size = p->log ? strlen(p->log) + 1 : 1;
    return NVRTC_SUCCESS;
}

EXPORT nvrtcResult nvrtcGetProgramLog(nvrtcProgram p, char *log) {
    strcpy(log, p->log ? p->log : "");
    return NVRTC_SUCCESS;
}

EXPORT nvrtcResult nvrtcGetCUBINSize(nvrtcProgram p, size_t *size) {
    *size = p->size;
    return NVRTC_SUCCESS;
}

EXPORT nvrtcResult nvrtcGetCUBIN(nvrtcProgram p, char *cubin) {
    memcpy(cubin, p->image, p->size);
    return NVRTC_SUCCESS;
}

EXPORT nvrtcResult nvrtcGetPTXSize(nvrtcProgram p, size_t *size) { return nvrtcGetCUBINSize(p, size); }
EXPORT nvrtcResult nvrtcGetPTX(nvrtcProgram p, char *ptx) { return nvrtcGetCUBIN(p, ptx); }

EXPORT nvrtcResult nvrtcDestroyProgram(nvrtcProgram *program) {
    nvrtcProgram p = *program;
    char *remove[] = {"rm", "-rf", p->folder, NULL};
    pid_t child;
    if (posix_spawnp(&child, "rm", NULL, NULL, remove, environ) == 0) waitpid(child, NULL, 0);
    free(p->image);
    free(p->log);
    free(p);
    *program = NULL;
    return NVRTC_SUCCESS;
}
