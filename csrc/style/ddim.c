#include "style/ddim.h"

#include <math.h>

#include "core/err.h"
#include "core/ops.h"

/* A move is z = up z + down e. */
typedef struct {
    double up, down;
} factors;

static factors factors_of(double from, double to) {
    double up = sqrt(to) / sqrt(from);
    return (factors){up, sqrt(1 - to) - up * sqrt(1 - from)};
}

int sid_ddim_move(sid_exec *exec, float *z, const float *prediction, size_t count, sid_prediction kind,
                  const sid_move *move) {
    const factors f = factors_of(move->from, move->to);
    double a = kind == SID_V_PREDICTION ? sqrt(move->from) : 1, b = kind == SID_V_PREDICTION ? sqrt(1 - move->from) : 0;
    return sid_mix(exec, z, prediction, count, f.up, f.down, a, b);
}

void sid_ddim_predicted(float *x0, const float *before, const float *after, size_t count, double from, double to) {
    const factors moved = factors_of(from, to), clean = factors_of(from, 1);
    for (size_t i = 0; i < count; i++) {
        double noise = (after[i] - moved.up * before[i]) / moved.down;
        x0[i] = (float)(clean.up * before[i] + clean.down * noise);
    }
}

int sid_to_noise(sid_exec *exec, float *prediction, const float *z, size_t count, sid_prediction kind, double level) {
    if (kind != SID_V_PREDICTION) return SID_OK;
    return sid_mix(exec, prediction, z, count, sqrt(level), sqrt(1 - level), 1, 0);
}

int sid_guide(sid_exec *exec, float *noise, const float *negative, size_t count, float guidance) {
    sid_tensor n = sid_dense((void *)negative, SID_F32, 1, 1, 1, count), x = sid_dense(noise, SID_F32, 1, 1, 1, count);
    SID_TRY(sid_combine(exec, &x, 1, &x, -1, &n));
    SID_TRY(sid_combine(exec, &x, guidance, &x, 0, NULL));
    return sid_combine(exec, &x, 1, &n, 1, &x);
}
