/* What the CPU and its operating system support. */
#include "cpu/cpu.h"
#include "cpu/kernels.h"

#if defined(__x86_64__)

#include <cpuid.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

/* Linux grants the large register state of the tiles on request only; once granted, it holds for the process. */
static int tiles_permitted(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#else
static int tiles_permitted(void) { return 0; }
#endif

/* Returns the register states that the operating system saves, one bit for each. */
static unsigned saved_states(void) {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    (void)high;
    return low;
}

static int all(unsigned value, unsigned bits) { return (value & bits) == bits; }
#define BIT(n) (1u << (n))

sid_isa sid_cpu_isa(void) {
    const unsigned fma = BIT(12), osxsave = BIT(27), avx = BIT(28), f16c = BIT(29);            /* leaf 1, ecx */
    const unsigned avx2 = BIT(5), avx512f = BIT(16), dq = BIT(17), bw = BIT(30), vl = BIT(31); /* leaf 7, ebx */
    const unsigned amx_bf16 = BIT(22), amx_tile = BIT(24);                                     /* leaf 7, edx */
    const unsigned avx512_bf16 = BIT(5);                                                       /* leaf 7.1, eax */
    const unsigned ymm_state = BIT(1) | BIT(2), zmm_state = BIT(5) | BIT(6) | BIT(7), tile_state = BIT(17) | BIT(18);

    unsigned a, b, c, d, ignored;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !all(c, fma | osxsave | avx | f16c)) return SID_ISA_GENERIC;
    unsigned states = saved_states();
    if (!all(states, ymm_state) || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !all(b, avx2)) return SID_ISA_GENERIC;
    if (!all(states, zmm_state) || !all(b, avx512f | dq | bw | vl)) return SID_ISA_AVX2;
    if (!__get_cpuid_count(7, 1, &a, &ignored, &c, &ignored) || !all(a, avx512_bf16)) return SID_ISA_AVX512;
    if (!all(states, tile_state) || !all(d, amx_bf16 | amx_tile) || !tiles_permitted()) return SID_ISA_AVX512_BF16;
    return SID_ISA_AMX;
}

#else

sid_isa sid_cpu_isa(void) { return SID_ISA_GENERIC; }

#endif

const char *const *sid_cpu_isa_names(void) {
    static const char *const names[SID_ISA_COUNT + 1] = {"generic", "avx2", "avx512", "avx512_bf16", "amx", NULL};
    return names;
}

const char *sid_isa_name(sid_isa isa) { return sid_cpu_isa_names()[isa]; }
