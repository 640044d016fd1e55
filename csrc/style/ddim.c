#include "style/ddim.h"

#include <math.h>

#include "core/err.h"
#include "core/ops.h"

int sid_ddim_move(sid_exec *exec, float *z, const float *prediction, size_t count, sid_prediction kind,
                  const sid_move *move) {
    double noise = sqrt(1 - move->from), signal = sqrt(move->from);
    double up = sqrt(move->to) / signal, down = sqrt(1 - move->to) - up * noise;
    /* e = a v + b z for a v-prediction; e = the prediction itself otherwise. */
    double a = kind == SID_V_PREDICTION ? signal : 1, b = kind == SID_V_PREDICTION ? noise : 0;
    return sid_mix(exec, z, prediction, count, up, down, a, b);
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
