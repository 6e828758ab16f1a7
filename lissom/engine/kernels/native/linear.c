/* Layers that read the same input, and what Python calls for one of them. */
#include "linear.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"
#include "pool.h"

/* Rows that are multiplied with some panels before the next ones are, so that their inputs stay in the second cache: a
   multiple of so many, which are whole tiles, and of about so many bytes. */
enum { ROWS = 48, RESIDENT = 1 << 17 };
enum { TURNS = 8 }; /* of each thread at most, so that nobody waits long for another */

typedef struct {
    const Linear *linear;
    const int32_t *picked;
    ptrdiff_t first, count; /* rows that are multiplied */
    const Kernel *kernel;
    int kept; /* whether made rows are read again */
} Call;

static float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Row m of those that begin with row `first`. */
static void round_row(const Kernel *kernel, const Rounding *r, const float *row, ptrdiff_t first, ptrdiff_t m) {
    const Layout *l = &r->layout;
    const ptrdiff_t block = r->block, blocks = r->width / block;
    int8_t *x = r->x + first * r->room + (m - first) * r->width;
    float *xs = r->xs + first * r->blocks + (m - first) * blocks;
    int32_t *xt = r->xt + first * r->blocks + (m - first) * blocks;
    const float whole = l->levels ? as_float(kernel->largest(row, l->inputs)) : 0;
    for (ptrdiff_t b = 0; b < blocks; b++) {
        const ptrdiff_t group = b * block / l->wide, inside = b * block % l->wide, at = group * l->group + inside;
        const ptrdiff_t left = l->group - inside, count = left < 0 ? 0 : left < block ? left : block;
        const float most = l->levels ? whole : as_float(kernel->largest(row + at, count));
        const float levels = l->levels ? (float)l->levels : 127;
        int8_t *to = x + b * block;
        const int some = most > TINY && most < INFINITY;
        if (!some) memset(to, 0, (size_t)block);
        xt[b] = some ? kernel->round(row + at, count, block, levels / most, to) : 0;
        xs[b] = some || most <= TINY ? most / levels : NAN;
    }
}

static void make_rows(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    const Call *call = given;
    const Linear *l = call->linear;
    const Source *s = &l->source;
    for (ptrdiff_t m = first; m < last; m++) {
        const ptrdiff_t from = call->picked ? call->picked[m] : m;
        float *made = call->kept ? l->made + call->first * l->room + (m - call->first) * s->width : l->made + thread * l->room;
        const int there = s->kind == AS_IS && !call->kept;
        if (!there) call->kernel->make(s, from, made);
        const float *row = there ? s->from.at + from * s->from.stride : made;
        if (l->narrow) call->kernel->narrow(row, s->width, l->narrow + call->first * l->room + (m - call->first) * s->width);
        for (ptrdiff_t r = 0; r < l->rounding_count; r++) round_row(call->kernel, l->roundings + r, row, call->first, m);
    }
}

static ptrdiff_t outputs_of(const Product *p) { return p->panels ? p->panels->outputs : p->dense->outputs; }
static ptrdiff_t items_of(const Product *p) { return (outputs_of(p) + LANES - 1) / LANES; }

static ptrdiff_t all_items(const Linear *l) {
    ptrdiff_t items = 0;
    for (ptrdiff_t p = 0; p < l->product_count; p++) items += items_of(l->products + p);
    return items;
}

static int reads_floats(const Linear *l) {
    int found = 0;
    for (const Product *p = l->products; p < l->products + l->product_count; p++)
        found |= !p->panels && p->dense->from == FLOAT32;
    return found;
}

/* Some items of a product for `count` rows, of which the first is number `skip` of the call. */
static void multiply_some(const Call *call, const Product *p, ptrdiff_t skip, ptrdiff_t count, ptrdiff_t first, ptrdiff_t last) {
    const Linear *l = call->linear;
    const ptrdiff_t row = call->first;
    const Columns to = {p->to.at + (row + skip) * p->to.stride, p->to.stride};
    if (p->panels) {
        const Rounding *r = l->roundings + p->rounding;
        const ptrdiff_t blocks = p->panels->width / p->panels->block, at = row * r->blocks + skip * blocks;
        const Rows rows = {.count = count, .x = r->x + row * r->room + skip * p->panels->width, .xs = r->xs + at,
                           .xt = r->xt + at, .y = to.at, .stride = to.stride, .add = p->add};
        call->kernel->multiply(p->panels, &rows, first, last);
    } else {
        const ptrdiff_t outputs = p->dense->outputs, stop = last * LANES < outputs ? last * LANES : outputs;
        const ptrdiff_t at = row * l->room + skip * l->source.width;
        const void *x = p->dense->from == BFLOAT16 ? (const void *)(l->narrow + at) : l->made + at;
        call->kernel->dense(p->dense, x, count, to, p->add, first * LANES, stop);
    }
}

/* Items are LANES outputs, those of the first product first. */
static void multiply_items(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    const Call *call = given;
    const Linear *l = call->linear;
    const ptrdiff_t most = l->rounding_count ? (RESIDENT / (ROWS * l->source.width) + 1) * ROWS : call->count;
    (void)thread;
    for (ptrdiff_t skip = 0; skip < call->count; skip += most) {
        const ptrdiff_t left = call->count - skip, count = left < most ? left : most;
        ptrdiff_t before = 0;
        for (const Product *p = l->products; p < l->products + l->product_count; before += items_of(p++)) {
            const ptrdiff_t items = items_of(p), begin = first > before ? first - before : 0;
            const ptrdiff_t end = last - before < items ? last - before : items;
            if (begin < end) multiply_some(call, p, skip, count, begin, end);
        }
    }
}

ptrdiff_t lissom_weights(const Linear *l) { return all_items(l) * LANES * l->source.width; }

ptrdiff_t lissom_chunk(ptrdiff_t items, ptrdiff_t work, int threads) {
    const ptrdiff_t enough = 1 << 20, least = enough / (work + 1) + 1, turns = TURNS * threads;
    const ptrdiff_t shared = (items + turns - 1) / turns;
    return items <= 2 * least ? items : least < shared ? shared : least;
}

void lissom_multiply_rows(const Linear *l, const Kernel *kernel, ptrdiff_t first, ptrdiff_t last, int thread) {
    Call call = {.linear = l, .first = first, .count = last - first, .kernel = kernel, .kept = reads_floats(l)};
    make_rows(&call, first, last, thread);
    multiply_items(&call, 0, all_items(l), thread);
}

void lissom_multiply(const Linear *l, ptrdiff_t count, const int32_t *picked, Machine on) {
    Call call = {.linear = l, .picked = picked, .count = count, .kernel = on.kernel, .kept = reads_floats(l)};
    const ptrdiff_t items = all_items(l);
    ptrdiff_t weights = 0;
    for (const Product *p = l->products; p < l->products + l->product_count; p++)
        weights += outputs_of(p) * l->source.width * (p->panels ? 1 : 4);
    if (!l->there) on.each(make_rows, &call, count, lissom_chunk(count, 64 * l->source.width, on.threads), on.threads);
    const ptrdiff_t work = weights / items * (count < 4 ? 4 : count);
    on.each(multiply_items, &call, items, lissom_chunk(items, work, on.threads), on.threads);
}

static inline unsigned code_at(const uint8_t *chunk, int bits, ptrdiff_t half, ptrdiff_t part, ptrdiff_t place) {
    const uint8_t *first = chunk + half * 64 + place;
    if (bits == 8) return first[part * 128];
    if (bits == 4) return first[part / 2 * 128] >> part % 2 * 4 & 15;
    if (bits == 1) return (first[0] >> part & 1) << 1;
    const unsigned low = first[part / 4 * 128] >> part % 4 * 2 & 3;
    return bits == 2 ? low : low | (first[256] >> part & 1) << 2;
}

/* `count` inputs of an output, all of a chunk. */
static void chunk_row(const Panels *w, ptrdiff_t output, ptrdiff_t chunk, ptrdiff_t count, float *to) {
    const ptrdiff_t panel = output / LANES, lane = output % 16, half = output % LANES / 16, width = w->width;
    const uint8_t *codes = w->codes + (panel * (width / CHUNK) + chunk) * (w->bits * LANES * CHUNK / 8);
    const uint8_t *book = w->book + (panel * 2 + half) * w->books * 64 + (w->books == 4 ? lane % 4 * 64 : 0) + lane / 4 * 16;
    const ptrdiff_t b = (panel * (width / w->block) + chunk * CHUNK / w->block) * LANES + output % LANES;
    const int zero = w->zeros ? w->zeros[b] : w->zero;
    const float scale = lissom_half(w->scale[b]) * w->unit[output];
    for (ptrdiff_t i = 0; i < count; i++) {
        const unsigned code = code_at(codes, w->bits, half, i / 4, lane * 4 + i % 4);
        to[i] = (float)((int)(w->books ? book[code] : code) - zero) * scale;
    }
}

void lissom_panel_row(const Panels *w, const Layout *l, ptrdiff_t output, float *to) {
    for (ptrdiff_t j = 0, at = 0; j < l->inputs; j += l->group, at += l->wide)
        for (ptrdiff_t i = 0; i < l->group; i += CHUNK)
            chunk_row(w, output, (at + i) / CHUNK, l->group - i < CHUNK ? l->group - i : CHUNK, to + j + i);
}

/* Rows of a compressed matrix, those that `which` names: (count x inputs). */
EXPORT void lissom_rows(const Panels *w, const Layout *layout, const int64_t *which, ptrdiff_t count, float *to) {
    for (ptrdiff_t n = 0; n < count; n++) lissom_panel_row(w, layout, which[n], to + n * layout->inputs);
}

/* y (count x outputs) = rows of x (count x inputs) times w; 0, or -1 where memory is short. */
EXPORT int lissom_linear(const Panels *w, const Layout *layout, const float *x, float *y, ptrdiff_t count, int kernel,
                         int threads) {
    const ptrdiff_t blocks = w->width / w->block;
    Rounding rounding = {.layout = *layout, .block = w->block, .width = w->width};
    rounding.x = malloc((size_t)(count * w->width) + 64);
    rounding.xs = malloc(sizeof(float) * (size_t)(count * blocks) + 64);
    rounding.xt = malloc(sizeof(int32_t) * (size_t)(count * blocks) + 64);
    const int failed = !(rounding.x && rounding.xs && rounding.xt);
    if (!failed) {
        const Product product = {.panels = w, .to = {y, w->outputs}};
        const Source rows = {.from = {(float *)x, layout->inputs}, .width = layout->inputs, .kind = AS_IS};
        const Linear linear = {.source = rows, .roundings = &rounding, .rounding_count = 1, .products = &product, .product_count = 1};
        lissom_multiply(&linear, count, NULL, (Machine){lissom_kernel(kernel), lissom_each_beside_torch, threads});
    }
    free(rounding.x);
    free(rounding.xs);
    free(rounding.xt);
    return -failed;
}

/* y (count x outputs) = rows of x (count x inputs), of the type it reads, times a matrix that is dense or masked. */
EXPORT void lissom_dense(const Dense *w, const void *x, float *y, ptrdiff_t count, int kernel, int threads) {
    const Product product = {.dense = w, .to = {y, w->outputs}};
    const Source rows = {.from = {(float *)x, w->inputs}, .width = w->inputs, .kind = AS_IS};
    const Linear linear = {.source = rows, .products = &product, .product_count = 1,
                           .made = (float *)x, .narrow = (uint16_t *)x, .there = 1};
    lissom_multiply(&linear, count, NULL, (Machine){lissom_kernel(kernel), lissom_each_beside_torch, threads});
}
