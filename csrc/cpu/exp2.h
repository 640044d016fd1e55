/* 2^x: the polynomial that every kernel shares, and the plain C form, which compilers vectorize. */
#ifndef SID_CPU_EXP2_H
#define SID_CPU_EXP2_H

/* Functions of the templates have this where they are inlined; the including file defines SID_TARGET. */
#define SID_INLINE SID_TARGET static inline __attribute__((always_inline))

/* Returns a * b + c, rounded once where the instruction exists. The including file defines SID_HAS_FMA where its
 * SID_TARGET has the instruction. */
#if defined(SID_HAS_FMA) || defined(__FP_FAST_FMAF)
#define SID_FMA(a, b, c) __builtin_fmaf(a, b, c)
#else
#define SID_FMA(a, b, c) ((a) * (b) + (c))
#endif

#define SID_LOG2E 1.44269504f
#define SID_LN2 0.693147181

/* 2^f for f in [0, 1) is 1 + f (C1 + f (C2 + ...)), which is exact at 0. The relative error is 8e-8, and 9e-5 for
 * the short polynomial. */
#define SID_EXP2_C1 0.693151312f
#define SID_EXP2_C2 0.24016445f
#define SID_EXP2_C3 0.0557999133f
#define SID_EXP2_C4 0.00901703002f
#define SID_EXP2_C5 0.00186713021f
#define SID_EXP2_SHORT_C1 0.695116789f
#define SID_EXP2_SHORT_C2 0.227644981f
#define SID_EXP2_SHORT_C3 0.0770670512f

/* Returns 2^x for finite x, with the exponent clamped to [-126, 127]. It has no branches, because compilers could
 * not vectorize them. */
static inline float sid_exp2(float x) {
    typedef union {
        float number;
        int bits;
    } word;
    const word shifter = {12582912}; /* 1.5 * 2^23: adding it rounds to a whole number, which is in the low bits */
    word whole = {x - 0.5f + shifter.number};
    float f = x - (whole.number - shifter.number);
    int exponent = (int)((unsigned)whole.bits - (unsigned)shifter.bits);
    exponent = exponent > -126 ? exponent : -126;
    exponent = exponent < 127 ? exponent : 127;
    float p = SID_FMA(f, SID_EXP2_C5, SID_EXP2_C4);
    p = SID_FMA(f, p, SID_EXP2_C3);
    p = SID_FMA(f, p, SID_EXP2_C2);
    p = SID_FMA(f, p, SID_EXP2_C1);
    word power = {.bits = (exponent + 127) << 23};
    return SID_FMA(f, p, 1) * power.number;
}

#endif
