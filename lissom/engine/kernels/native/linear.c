/* What Python calls: rows of floats times panels. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "panels.h"
#include "pool.h"

typedef struct {
    ptrdiff_t inputs, group, wide; /* of the matrix: inputs, those that share a scale, and these with their padding */
    int levels;                    /* 0: a scale for each block, 127 levels; else one for each row, so many levels */
} Layout;

typedef struct {
    const Panels *w;
    const Kernel *kernel;
    const Layout *layout;
    const float *from;
    Rows rows;
    int8_t *x;
    float *xs;
    int32_t *xt;
} Call;

static float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static void round_rows(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    const Call *call = given;
    const Layout *l = call->layout;
    const ptrdiff_t block = call->w->block, blocks = call->w->width / block;
    (void)thread;
    for (ptrdiff_t m = first; m < last; m++) {
        const float *row = call->from + m * l->inputs;
        const float whole = l->levels ? as_float(call->kernel->largest(row, l->inputs)) : 0;
        for (ptrdiff_t b = 0; b < blocks; b++) {
            const ptrdiff_t group = b * block / l->wide, inside = b * block % l->wide, at = group * l->group + inside;
            const ptrdiff_t left = l->group - inside, count = left < 0 ? 0 : left < block ? left : block;
            const float most = l->levels ? whole : as_float(call->kernel->largest(row + at, count));
            const float levels = l->levels ? (float)l->levels : 127;
            int8_t *to = call->x + m * call->w->width + b * block;
            const int some = most > TINY && most < INFINITY;
            if (!some) memset(to, 0, (size_t)block);
            call->xt[m * blocks + b] = some ? call->kernel->round(row + at, count, block, levels / most, to) : 0;
            call->xs[m * blocks + b] = some || most <= TINY ? most / levels : NAN;
        }
    }
}

/* Panels that a thread takes at once: work enough that taking it costs nothing, and several turns for each thread, so that
   one that was interrupted does not keep the others waiting. A matrix of little work is left to one thread. */
static ptrdiff_t chunk_of(const Panels *w, ptrdiff_t count, ptrdiff_t panels, int threads) {
    const ptrdiff_t enough = 1 << 20, least = enough / (w->width * LANES * (count < 4 ? 4 : count)) + 1;
    const ptrdiff_t shared = panels / (4 * threads) + 1;
    return panels <= 2 * least ? panels : least < shared ? shared : least;
}

static void multiply_panels(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    const Call *call = given;
    (void)thread;
    call->kernel->multiply(call->w, &call->rows, first, last);
}

const Kernel *const lissom_kernels[] = {
    &lissom_portable,
#if defined(__x86_64__)
    &lissom_avx2, &lissom_avxvnni, &lissom_avx512,
#endif
};

#if defined(__x86_64__)
static int has_avxvnni(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}

static int runs(int kernel) {
    __builtin_cpu_init();
    if (kernel == 3)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vnni");
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    return kernel == 0 || (avx2 && (kernel == 1 || has_avxvnni()));
}
#else
static int runs(int kernel) { return kernel == 0; }
#endif

/* Whether this processor can run that one of lissom_kernels; -1 beyond the last. */
EXPORT int lissom_runs(int kernel) {
    if (kernel < 0 || kernel >= (int)(sizeof lissom_kernels / sizeof *lissom_kernels)) return -1;
    return runs(kernel);
}

/* y (count x outputs) = rows of x (count x inputs) times w; 0, or -1 where memory is short. */
EXPORT int lissom_linear(const Panels *w, const Layout *layout, const float *x, float *y, ptrdiff_t count, int kernel,
                         int threads) {
    const ptrdiff_t blocks = w->width / w->block, panels = (w->outputs + LANES - 1) / LANES;
    Call call = {.w = w, .kernel = lissom_kernels[kernel], .layout = layout, .from = x};
    call.x = malloc((size_t)(count * w->width) + 64);
    call.xs = malloc(sizeof(float) * (size_t)(count * blocks) + 64);
    call.xt = malloc(sizeof(int32_t) * (size_t)(count * blocks) + 64);
    const int failed = !(call.x && call.xs && call.xt);
    if (!failed) {
        call.rows = (Rows){.count = count, .x = call.x, .xs = call.xs, .xt = call.xt, .y = y};
        lissom_each(round_rows, &call, count, count < 16 ? count : 4, threads);
        lissom_each(multiply_panels, &call, panels, chunk_of(w, count, panels, threads), threads);
    }
    free(call.x);
    free(call.xs);
    free(call.xt);
    return -failed;
}
