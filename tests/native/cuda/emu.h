// The kernels' CUDA on a CPU: in plain C++, the half of csrc/cuda/kernels/sid.cuh that consists of instructions.
//
// The threads of a block are fibers of one thread of the system. A warp, chosen at random, runs as far as it can, its
// lanes one after the other, so that whatever needs a barrier and has none is overtaken sooner or later.
// __syncthreads() and the operations of a warp are meeting points; the last lane to arrive at one computes the result
// of all 32. Shared memory is full of NaNs at the start of every block, and the space between its arrays is watched.
// Copies that copy_start() begins take place in copies_wait().
//
// To compile: g++ -std=c++17 -shared -fPIC -DSID_EMULATED -DSID_T=2 -DSID_ARCH=80 -include emu.h x.cu. For each kernel
// NAME the library has sid_emu_size_NAME, the size of its parameters, and sid_emu_run_NAME(grid, threads, shared,
// parameters).
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define SID_DEVICE static inline
#define __restrict__ __restrict

struct alignas(16) vector16 {
    unsigned words[4];
};
struct emu_index {
    unsigned x, y, z;
};
static emu_index threadIdx, blockIdx;

namespace emu {

enum {
    STACK = 64 << 10,
    SHARED = 48 << 10,
    GUARD = 64,
    WARP = 32,
    MOST_THREADS = 1024,
    MOST_ARRAYS = 16,
    MOST_COPIES = 64,  // of one thread between two waits
    LARGEST_INPUT = 10 // words of a lane in an operation of its warp
};

[[noreturn]] static void fail(const char *what) {
    fprintf(stderr, "emulated kernel: %s (block %u %u %u, thread %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z,
            threadIdx.x);
    abort();
}

// ---- fibers ----

// Pushes the registers that a call preserves on the stack, stores the stack pointer in *save and continues with `load`.
extern "C" void sid_emu_switch(void **save, void *load) __attribute__((visibility("hidden")));
#if defined __x86_64__
enum { KEPT = 6 };
asm(".text\n.globl sid_emu_switch\n.hidden sid_emu_switch\nsid_emu_switch:\n"
    " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n mov %rsp,(%rdi)\n"
    " mov %rsi,%rsp\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
#elif defined __aarch64__
enum { KEPT = 20 };
asm(".text\n.globl sid_emu_switch\n.hidden sid_emu_switch\nsid_emu_switch:\n"
    " sub sp, sp, #160\n stp x19, x20, [sp]\n stp x21, x22, [sp, #16]\n stp x23, x24, [sp, #32]\n stp x25, x26, [sp, "
    "#48]\n"
    " stp x27, x28, [sp, #64]\n stp d8, d9, [sp, #80]\n stp d10, d11, [sp, #96]\n stp d12, d13, [sp, #112]\n"
    " stp d14, d15, [sp, #128]\n stp x29, x30, [sp, #144]\n mov x9, sp\n str x9, [x0]\n mov sp, x1\n"
    " ldp x19, x20, [sp]\n ldp x21, x22, [sp, #16]\n ldp x23, x24, [sp, #32]\n ldp x25, x26, [sp, #48]\n"
    " ldp x27, x28, [sp, #64]\n ldp d8, d9, [sp, #80]\n ldp d10, d11, [sp, #96]\n ldp d12, d13, [sp, #112]\n"
    " ldp d14, d15, [sp, #128]\n ldp x29, x30, [sp, #144]\n add sp, sp, #160\n ret\n");
#else
#error "emu.h knows x86-64 and aarch64"
#endif

struct copy {
    void *to;
    const void *from; // NULL for zeros
};

enum state { READY, WAITING, DONE };

struct fiber {
    void *stack_pointer;
    char *stack;
    state status;
    size_t shared; // bytes of shared memory that it has declared so far
    int copy_count;
    copy copies[MOST_COPIES];
};

// A point where the lanes of a warp meet.
struct meeting {
    int arrived;
    unsigned in[WARP][LARGEST_INPUT], out[WARP][4];
};

static fiber fibers[MOST_THREADS];
static meeting warps[MOST_THREADS / WARP];
static void *scheduler;
static int thread_count, current, live, at_barrier;
static void (*kernel)(const void *parameters);
static const void *kernel_parameters;
static unsigned seed = 1;

static unsigned random_number() {
    seed = seed * 1664525 + 1013904223;
    return seed >> 8;
}

// Makes the running thread wait until another one makes it READY.
static void wait() {
    fibers[current].status = WAITING;
    sid_emu_switch(&fibers[current].stack_pointer, scheduler);
}

static void release_barrier() {
    at_barrier = 0;
    for (int i = 0; i < thread_count; i++)
        if (fibers[i].status == WAITING) fibers[i].status = READY;
}

static void entry() {
    kernel(kernel_parameters);
    fibers[current].status = DONE;
    live--;
    if (live && at_barrier == live) release_barrier(); // threads that have ended count as arrived
    sid_emu_switch(&fibers[current].stack_pointer, scheduler);
    abort();
}

static void begin_fiber(fiber *f) {
    if (!f->stack) f->stack = (char *)aligned_alloc(64, STACK);
    if (!f->stack) fail("out of memory");
    void **top = (void **)(f->stack + STACK) - 2; // aligned as a call leaves it
    top[0] = (void *)entry;
#if defined __aarch64__
    f->stack_pointer = top - KEPT;
    memset(f->stack_pointer, 0, KEPT * sizeof *top);
    ((void **)f->stack_pointer)[19] = (void *)entry; // x30
#else
    f->stack_pointer = top - KEPT;
#endif
    f->status = READY;
    f->shared = 0;
    f->copy_count = 0;
}

// ---- shared memory ----

alignas(64) static char shared_memory[SHARED + GUARD];
static size_t guards[MOST_ARRAYS], guard_count; // the places of the guards, one behind every array

// Returns the next array that the running thread declares; all threads of a block declare the same ones.
[[maybe_unused]] static void *shared_array(size_t size) {
    fiber &f = fibers[current];
    size_t first = f.shared, end = (first + size + GUARD - 1) / GUARD * GUARD;
    if (end + GUARD > SHARED) fail("more than 48 KB of shared memory");
    if (!guard_count || guards[guard_count - 1] < first + size) {
        if (guard_count == MOST_ARRAYS) fail("too many arrays in shared memory");
        guards[guard_count++] = first + size;
    }
    f.shared = end + GUARD;
    return shared_memory + first;
}

static void check_guards() {
    for (size_t k = 0; k < guard_count; k++)
        for (size_t i = guards[k]; i < (guards[k] + GUARD - 1) / GUARD * GUARD + GUARD; i++)
            if (shared_memory[i] != (char)0xff) fail("wrote behind an array in shared memory");
}

// ---- blocks ----

static bool run_warp(int first) {
    int rotation = random_number() % WARP;
    bool ran = false;
    for (int i = 0; i < WARP; i++) {
        int thread = first + (i + rotation) % WARP;
        if (fibers[thread].status != READY) continue;
        current = thread;
        threadIdx.x = thread;
        sid_emu_switch(&scheduler, fibers[thread].stack_pointer);
        ran = true;
    }
    return ran;
}

static void run_block() {
    memset(shared_memory, 0xff, sizeof shared_memory);
    guard_count = 0;
    live = thread_count;
    at_barrier = 0;
    for (int i = 0; i < thread_count; i++) begin_fiber(&fibers[i]);
    for (int i = 0; i < thread_count / WARP; i++) warps[i].arrived = 0;
    while (live) {
        int count = thread_count / WARP, first = random_number() % count;
        bool any = false;
        for (int i = 0; i < count && !any; i++) // finds the first warp from there on that can run
            while (run_warp((first + i) % count * WARP)) any = true;
        if (!any) fail("threads wait for others that never come");
    }
    check_guards();
}

static void launch(const unsigned *grid, unsigned threads, unsigned expected, void (*run)(const void *),
                   const void *parameters) {
    if (threads != expected || threads % WARP || threads > MOST_THREADS)
        fail("launched with a wrong number of threads");
    thread_count = threads;
    kernel = run;
    kernel_parameters = parameters;
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                run_block();
            }
}

// Does the running lane's part in an operation of its warp: the last lane to arrive computes the results of all lanes
// from all inputs.
template <class F> static void together(const unsigned *in, int in_count, unsigned *out, int out_count, F compute) {
    meeting &m = warps[current / WARP];
    int lane = current % WARP, first = current - lane;
    memcpy(m.in[lane], in, in_count * sizeof *in);
    if (++m.arrived == WARP) {
        m.arrived = 0;
        compute(m);
        for (int i = 0; i < WARP; i++)
            if (i != lane) fibers[first + i].status = READY;
    } else {
        wait();
    }
    memcpy(out, m.out[lane], out_count * sizeof *out);
}

// ---- numbers ----

static inline unsigned bits_of(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline float float_of(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static float widen_half(unsigned short half) {
    int exponent = half >> 10 & 31, fraction = half & 0x3ff;
    float magnitude = exponent == 31
                          ? (fraction ? NAN : INFINITY)
                          : ldexpf((float)(exponent ? fraction | 0x400 : fraction), (exponent ? exponent : 1) - 25);
    return half & 0x8000 ? -magnitude : magnitude;
}

static unsigned short narrow_half(float x) {
    unsigned bits = bits_of(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x477ff000) return sign | 0x7c00;
    // Adding a number whose last bit is worth as much as that of a denormal half rounds at the right place.
    if (magnitude < 0x38800000) return sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f));
    return sign | (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
}

// Returns all numbers of the backend's 16-bit dtype.
static const float *wide_numbers() {
    static float *table;
    if (table) return table;
    table = new float[1 << 16];
    for (unsigned i = 0; i < 1 << 16; i++) table[i] = SID_T == 1 ? float_of(i << 16) : widen_half(i);
    return table;
}

// Computes one mma for a warp, of depth 8 or 16, with the inputs a (depth / 4 words), b (depth / 8) and c (4). sid.cuh
// has the layouts.
template <int DEPTH> static void multiply_all(meeting &m) {
    const float *wide = wide_numbers();
    float a[16][DEPTH], b[DEPTH][8], sums[8];
    for (int lane = 0; lane < WARP; lane++) {
        int g = lane / 4, t = lane % 4;
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < DEPTH / 4; i++)
                a[g + i % 2 * 8][2 * t + half + i / 2 * 8] = wide[m.in[lane][i] >> 16 * half & 0xffff];
            for (int i = 0; i < DEPTH / 8; i++)
                b[2 * t + half + i * 8][g] = wide[m.in[lane][DEPTH / 4 + i] >> 16 * half & 0xffff];
        }
    }
    for (int row = 0; row < 16; row++) {
        for (int n = 0; n < 8; n++) sums[n] = 0;
        for (int k = 0; k < DEPTH; k++)
            for (int n = 0; n < 8; n++) sums[n] += a[row][k] * b[k][n];
        for (int n = 0; n < 8; n++) {
            int lane = row % 8 * 4 + n / 2, place = row / 8 * 2 + n % 2;
            m.out[lane][place] = bits_of(float_of(m.in[lane][DEPTH * 3 / 8 + place]) + sums[n]);
        }
    }
}

template <int DEPTH> static inline void multiply(float *c, const unsigned *a, const unsigned *b) {
    unsigned in[DEPTH * 3 / 8 + 4];
    memcpy(in, a, DEPTH / 4 * sizeof *in);
    memcpy(in + DEPTH / 4, b, DEPTH / 8 * sizeof *in);
    memcpy(in + DEPTH * 3 / 8, c, 4 * sizeof *in);
    together(in, DEPTH * 3 / 8 + 4, (unsigned *)c, 4, multiply_all<DEPTH>);
}

template <bool TRANSPOSED> static inline void load_matrices(unsigned *r, const unsigned short *row) {
    unsigned in[2];
    if ((size_t)row % 16) fail("a row of a matrix that is not aligned");
    memcpy(in, &row, sizeof row);
    together(in, 2, r, 4, [](meeting &m) {
        for (int i = 0; i < 4; i++) {
            const unsigned short *rows[8];
            for (int j = 0; j < 8; j++) memcpy(&rows[j], m.in[i * 8 + j], sizeof *rows);
            for (int lane = 0; lane < WARP; lane++) {
                int g = lane / 4, t = lane % 4 * 2;
                unsigned low = TRANSPOSED ? rows[t][g] : rows[g][t],
                         high = TRANSPOSED ? rows[t + 1][g] : rows[g][t + 1];
                m.out[lane][i] = low | high << 16;
            }
        }
    });
}

} // namespace emu

// ---- what the kernels see ----

#define SID_SHARED(type, name, count) type *const name = (type *)emu::shared_array(sizeof(type) * (count))
#define SID_KERNEL(name, parameters, threads)                                                                \
    static void name(const parameters &p);                                                                   \
    extern "C" const unsigned long sid_emu_size_##name;                                                      \
    const unsigned long sid_emu_size_##name = sizeof(parameters);                                            \
    extern "C" void sid_emu_run_##name(const unsigned *grid, unsigned count, unsigned long, const void *p) { \
        emu::launch(grid, count, threads, [](const void *from) { name(*(const parameters *)from); }, p);     \
    }                                                                                                        \
    static void name(const parameters &p)

// Another seed gives other schedules.
extern "C" void sid_emu_seed(unsigned seed);
void sid_emu_seed(unsigned seed) { emu::seed = seed; }

static inline void __syncthreads() {
    if (++emu::at_barrier == emu::live) {
        emu::release_barrier();
    } else {
        emu::wait();
    }
}

static inline float half_to_float(unsigned short x) { return emu::widen_half(x); }
static inline unsigned short float_to_half(float x) { return emu::narrow_half(x); }
static inline unsigned float_bits(float x) { return emu::bits_of(x); }
static inline float bits_float(unsigned x) { return emu::float_of(x); }

static inline float ex2(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0 : y;
}

static inline float shuffle_xor(float x, int mask) {
    unsigned in = emu::bits_of(x), out;
    emu::together(&in, 1, &out, 1, [mask](emu::meeting &m) {
        for (int lane = 0; lane < emu::WARP; lane++) m.out[lane][0] = m.in[lane ^ mask][0];
    });
    return emu::float_of(out);
}

static inline unsigned short float_to_bfloat(float x);
static inline unsigned pack_pair(float first, float second) {
#if SID_T == 1
    return float_to_bfloat(first) | (unsigned)float_to_bfloat(second) << 16;
#else
    return emu::narrow_half(first) | (unsigned)emu::narrow_half(second) << 16;
#endif
}

static inline void multiply_8(float *c, const unsigned *a, const unsigned *b) { emu::multiply<8>(c, a, b); }
static inline void multiply_16(float *c, const unsigned *a, const unsigned *b) { emu::multiply<16>(c, a, b); }
static inline void load_matrices(unsigned *r, const unsigned short *row) { emu::load_matrices<false>(r, row); }
static inline void load_matrices_transposed(unsigned *r, const unsigned short *row) {
    emu::load_matrices<true>(r, row);
}

static inline void copies_wait() {
    emu::fiber &f = emu::fibers[emu::current];
    for (int i = 0; i < f.copy_count; i++)
        if (f.copies[i].from) memcpy(f.copies[i].to, f.copies[i].from, 16);
        else memset(f.copies[i].to, 0, 16);
    f.copy_count = 0;
}

static inline void copy_start(void *shared, const void *global, bool exists) {
    if ((size_t)shared % 16 || (size_t)global % 16) emu::fail("a copy that is not aligned");
    emu::fiber &f = emu::fibers[emu::current];
    if (f.copy_count == emu::MOST_COPIES) emu::fail("too many copies at a time");
    f.copies[f.copy_count++] = {shared, exists ? global : nullptr};
#if SID_ARCH < 80
    copies_wait();
#endif
}
