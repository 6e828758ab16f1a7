/* The steps of a recurrent layer: what was said goes through a matrix, and makes what is said next. */
#include <stdlib.h>

#include "linear.h"
#include "native.h"

enum { FEW = 4 }; /* sequences for each thread; of fewer the threads share the outputs of each step */

typedef struct {
    const Panels *panels;
    Rounding rounding;
    int kind, backward;               /* one of Cell */
    const float *gates, *before;      /* [steps][batch][gates], made of the inputs; [batch][size], said before the first step */
    float *said, *cell, *heard;       /* [steps][batch][size]; [batch][size] of an LSTM; [batch][gates] */
    ptrdiff_t steps, batch, size;
    Machine on;
} Recurrence;

/* All steps of sequences `first` up to `last`; by one thread, or of all of them by all. */
static void run(const Recurrence *r, ptrdiff_t first, ptrdiff_t last, int thread, int alone) {
    const ptrdiff_t size = r->size, wide = r->panels->outputs;
    const Product product = {.panels = r->panels, .to = {r->heard, wide}};
    const float *before = r->before;
    for (ptrdiff_t n = 0; n < r->steps; n++) {
        const ptrdiff_t t = r->backward ? r->steps - 1 - n : n;
        const Source rows = {.from = {(float *)before, size}, .width = size, .kind = AS_IS};
        const Linear linear = {.source = rows, .roundings = &r->rounding, .rounding_count = 1,
                               .products = &product, .product_count = 1};
        if (alone) lissom_multiply_rows(&linear, r->on.kernel, first, last, thread);
        else lissom_multiply(&linear, last, NULL, r->on);
        float *now = r->said + t * r->batch * size;
        for (ptrdiff_t b = first; b < last; b++) {
            const float *made = r->gates + (t * r->batch + b) * wide;
            r->on.kernel->say(r->kind, made, r->heard + b * wide, before + b * size, r->cell + b * size, now + b * size, size);
        }
        before = now;
    }
}

static void run_some(void *given, ptrdiff_t first, ptrdiff_t last, int thread) { run(given, first, last, thread, 1); }

/* `said` is written, and `cell` changed; the fields of Recurrence say what is what. 0, or -1 where memory is short. */
EXPORT int lissom_recur(const Panels *w, const Layout *layout, int kind, int backward, const float *gates, float *said,
                        const float *before, float *cell, ptrdiff_t steps, ptrdiff_t batch, int kernel, int threads) {
    const ptrdiff_t blocks = w->width / w->block;
    Recurrence r = {.panels = w, .kind = kind, .backward = backward, .gates = gates, .before = before, .said = said, .cell = cell,
                    .steps = steps, .batch = batch, .size = layout->inputs,
                    .rounding = {.layout = *layout, .block = w->block, .width = w->width, .room = w->width, .blocks = blocks},
                    .on = {lissom_kernel(kernel), lissom_each_beside_torch, threads}};
    r.rounding.x = malloc((size_t)(batch * w->width) + 64);
    r.rounding.xs = malloc(sizeof(float) * (size_t)(batch * blocks) + 64);
    r.rounding.xt = malloc(sizeof(int32_t) * (size_t)(batch * blocks) + 64);
    r.heard = malloc(sizeof(float) * (size_t)(batch * w->outputs) + 64);
    const int failed = !(r.rounding.x && r.rounding.xs && r.rounding.xt && r.heard);
    if (!failed && batch >= FEW * threads) r.on.each(run_some, &r, batch, (batch + threads - 1) / threads, threads);
    else if (!failed) run(&r, 0, batch, 0, 0);
    free(r.rounding.x);
    free(r.rounding.xs);
    free(r.rounding.xt);
    free(r.heard);
    return -failed;
}
