#include "style/schedule.h"

#include "core/err.h"

#define DEFAULT_LAYER_PAPER 6
#define DEFAULT_LAYER_DIFFUSERS 7
#define LAST_LEVEL (SID_TRAIN_STEPS - 1)

const char *const *sid_schedule_names(void) {
    static const char *const names[SID_SCHEDULE_COUNT + 1] = {"paper", "diffusers", "corrected", NULL};
    return names;
}

static int stride_of(size_t steps) { return SID_TRAIN_STEPS / (int)steps; }

/* Timesteps stay within the training's: with 1000 steps the last one would be 1000. */
static int clamp(int t) { return t < 0 ? 0 : t > LAST_LEVEL ? LAST_LEVEL : t; }

int sid_timestep(size_t steps, size_t i) { return clamp(1 + (int)i * stride_of(steps)); }

/* All inversions evaluate at 1, 1 + c, 1 + 2c, ... Those of `diffusers` move from the level c below up to the evaluated
 * one, the others from the evaluated level up to the next timestep's. */
static void fill_inversion(sid_schedule *s, sid_schedule_name name, int stride, const double *alphas) {
    for (size_t i = 0; i < s->steps; i++) {
        int t = 1 + (int)i * stride, above = i + 1 < s->steps ? t + stride : LAST_LEVEL;
        s->inversion[i] = name == SID_DIFFUSERS
                              ? (sid_move){clamp(t), alphas[clamp(t - stride)], alphas[clamp(t)], clamp(t), i}
                              : (sid_move){clamp(t), alphas[clamp(t)], alphas[clamp(above)], clamp(above), i};
    }
}

/* Samplings go down through the same timesteps; `paper` leaves out the first evaluation. The last move ends at
 * alpha[0], but that of `diffusers` where there is no noise, because its program decodes the x0 that its last
 * evaluation predicts. */
static void fill_sampling(sid_schedule *s, sid_schedule_name name, int stride, const double *alphas) {
    s->sampling_steps = name == SID_PAPER ? s->steps - 1 : s->steps;
    for (size_t i = 0; i < s->sampling_steps; i++) {
        size_t slot = s->sampling_steps - 1 - i;
        int t = 1 + (int)slot * stride;
        double to = name == SID_DIFFUSERS && slot == 0 ? 1 : alphas[clamp(t - stride)];
        s->sampling[i] = (sid_move){clamp(t), alphas[clamp(t)], to, clamp(t - stride), slot};
    }
}

int sid_schedule_open(sid_schedule *s, sid_schedule_name name, size_t steps, const double *alphas) {
    if (steps < 2 || steps > SID_TRAIN_STEPS)
        return sid_fail(SID_EVALUE, "steps: expected 2 to %d, got %zu", SID_TRAIN_STEPS, steps);
    int stride = stride_of(steps);
    *s = (sid_schedule){
        .steps = steps,
        .first_layer = name == SID_DIFFUSERS ? DEFAULT_LAYER_DIFFUSERS : DEFAULT_LAYER_PAPER,
        .adain_epsilon = name == SID_DIFFUSERS ? 1e-4f : 0,
        .truncate = name != SID_DIFFUSERS,
    };
    fill_inversion(s, name, stride, alphas);
    fill_sampling(s, name, stride, alphas);
    return SID_OK;
}
