/* Fills the table of kernels. */
#include "cpu/kernels.h"

void sid_kernels_fill(sid_kernels *kernels, sid_isa isa) {
    *kernels = (sid_kernels){.isa = isa};
    sid_kernels_generic(kernels);
#if defined(__x86_64__)
    static void (*const overlays[SID_ISA_COUNT])(sid_kernels *) = {
        [SID_ISA_AVX2] = sid_kernels_avx2,
        [SID_ISA_AVX512] = sid_kernels_avx512,
        [SID_ISA_AVX512_BF16] = sid_kernels_avx512_bf16,
        [SID_ISA_AMX] = sid_kernels_amx,
    };
    for (int level = SID_ISA_AVX2; level <= (int)isa; level++) overlays[level](kernels);
#endif
}
