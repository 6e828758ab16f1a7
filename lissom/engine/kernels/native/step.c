/* A whole step of a language model: a program that Python has built, run over the tokens of a pass. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"
#include "task.h"

enum {
    SOME = 32, MANY = 48,  /* rows for which a thread runs operations one after the other: at least, and at most */
    SMALL = 1 << 20,       /* weights that a layer of these has at most */
    TURNS = 4,             /* of each thread at least where heads of sequences are shared out */
};

/* What says which row of a table is a token's: as Python counts them. */
enum { BY_TOKEN, BY_PLACE, BY_TYPE };

/* Rows of a table become rows of a matrix. */
typedef struct {
    const Panels *panels; /* or null, and then */
    const Dense *dense;
    Layout layout;
    Columns to;
    float scale;
    int by;
} Embed;

/* to = source, or to += source; and that turned by Hadamard matrices of `turn` features each, where it is not 0. */
typedef struct {
    Source source;
    Columns to;
    ptrdiff_t turn;
    float *made; /* room for a row of each thread, */
    ptrdiff_t room; /* of so many floats at most */
    int add;
} Make;

typedef struct {
    float *at;
    ptrdiff_t width; /* of a row */
    float cap;
} Bound;

/* Each token is given to the `top` experts with the largest scores, and what they say is added, by their softmax. */
typedef struct {
    const Linear *gates, *sums; /* of each expert: what its tokens become, and what is said of that */
    const float *scores;        /* [rows][experts] */
    Columns said, to;           /* rows of an expert's tokens; of all tokens */
    ptrdiff_t experts, top, width;
    float *weights;         /* [rows][experts], 0 where an expert is not asked */
    int32_t *asked;         /* rows that an expert is asked about */
    int whole;              /* the weights of those asked sum to 1 */
} Experts;

/* Of some matrices only the rows stay that the pass picks, which become rows 0, 1, ..., and these are then all of the pass. */
typedef struct {
    Columns at;
    ptrdiff_t width;
} Rest;

typedef struct {
    const Rest *rests;
    ptrdiff_t count;
} Pick;

static float dense_at(const Dense *d, ptrdiff_t at) {
    if (d->type == FLOAT32) return ((const float *)d->weight)[at];
    const uint16_t bits = ((const uint16_t *)d->weight)[at];
    if (d->type == FLOAT16) return lissom_half(bits);
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static void dense_row(const Dense *d, ptrdiff_t row, float *to) {
    if (!d->mask && d->type == FLOAT32) {
        memcpy(to, (const float *)d->weight + row * d->inputs, sizeof(float) * (size_t)d->inputs);
        return;
    }
    ptrdiff_t next = d->mask ? d->starts[row] : 0;
    for (ptrdiff_t j = 0, at = row * d->inputs; j < d->inputs; j++, at++)
        if (!d->mask) to[j] = dense_at(d, at);
        else to[j] = d->mask[at / 8] >> at % 8 & 1 ? dense_at(d, next++) : 0;
}

static void embed(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    const Task *task = given;
    const Embed *e = task->what;
    const ptrdiff_t width = e->layout.inputs;
    const Pass *pass = task->pass;
    const int32_t *which = e->by == BY_TOKEN ? pass->tokens : e->by == BY_PLACE ? pass->places : pass->types;
    (void)thread;
    for (ptrdiff_t m = first; m < last; m++) {
        float *to = e->to.at + m * e->to.stride;
        if (e->panels) lissom_panel_row(e->panels, &e->layout, which[m], to);
        else dense_row(e->dense, which[m], to);
        if (e->scale != 1)
            for (ptrdiff_t j = 0; j < width; j++) to[j] *= e->scale;
    }
}

static void rotary(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    const Task *task = given;
    const Rotary *r = task->what;
    (void)thread;
    for (ptrdiff_t m = first; m < last; m++)
        for (ptrdiff_t i = 0; i < r->half; i++) {
            const float angle = (float)task->pass->places[m] * r->frequency[i];
            r->cosine[m * r->half + i] = cosf(angle) * r->scale;
            r->sine[m * r->half + i] = sinf(angle) * r->scale;
        }
}

/* H x / sqrt(size), by butterflies. */
static void turn(float *x, ptrdiff_t size) {
    for (ptrdiff_t half = 1; half < size; half *= 2)
        for (ptrdiff_t at = 0; at < size; at += 2 * half)
            for (ptrdiff_t i = at; i < at + half; i++) {
                const float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
    const float factor = 1 / sqrtf((float)size);
    for (ptrdiff_t i = 0; i < size; i++) x[i] *= factor;
}

static void make(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    const Task *task = given;
    const Make *m = task->what;
    for (ptrdiff_t row = first; row < last; row++) {
        float *to = m->to.at + row * m->to.stride, *made = m->add ? m->made + thread * m->room : to;
        task->kernel->make(&m->source, row, made);
        if (m->turn)
            for (ptrdiff_t j = 0; j < m->source.width; j += m->turn) turn(made + j, m->turn);
        if (m->add)
            for (ptrdiff_t j = 0; j < m->source.width; j++) to[j] += made[j];
    }
}

/* The softmax of scores, of which the largest stay; the first of those that are equal. */
static void route(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    const Task *task = given;
    const Experts *x = task->what;
    (void)thread;
    for (ptrdiff_t m = first; m < last; m++) {
        const float *scores = x->scores + m * x->experts;
        float *weights = x->weights + m * x->experts, most = -INFINITY, all = 0, asked = 0;
        memset(weights, 0, sizeof(float) * (size_t)x->experts);
        for (ptrdiff_t e = 0; e < x->experts; e++) most = scores[e] > most ? scores[e] : most;
        for (ptrdiff_t e = 0; e < x->experts; e++) all += expf(scores[e] - most);
        for (ptrdiff_t i = 0; i < x->top; i++) {
            ptrdiff_t best = -1;
            for (ptrdiff_t e = 0; e < x->experts; e++)
                if (weights[e] == 0 && (best < 0 || scores[e] > scores[best])) best = e;
            weights[best] = expf(scores[best] - most) / all;
            asked += weights[best];
        }
        for (ptrdiff_t e = 0; x->whole && e < x->experts; e++) weights[e] /= asked;
    }
}

typedef struct {
    const Experts *of;
    ptrdiff_t expert;
} Saying;

static void add_said(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    const Saying *saying = given;
    const Experts *x = saying->of;
    (void)thread;
    for (ptrdiff_t m = first; m < last; m++) {
        const float weight = x->weights[x->asked[m] * x->experts + saying->expert], *said = x->said.at + m * x->said.stride;
        float *to = x->to.at + x->asked[m] * x->to.stride;
        for (ptrdiff_t j = 0; j < x->width; j++) to[j] += weight * said[j];
    }
}

/* One expert after the other, so that the sum of a token has one order. All read the stream as it was: what is added goes
   to another matrix. */
static void ask(const Experts *x, ptrdiff_t rows, Machine on) {
    for (ptrdiff_t e = 0; e < x->experts; e++) {
        ptrdiff_t count = 0;
        for (ptrdiff_t m = 0; m < rows; m++)
            if (x->weights[m * x->experts + e] != 0) x->asked[count++] = (int32_t)m;
        if (!count) continue;
        lissom_multiply(x->gates + e, count, x->asked, on);
        lissom_multiply(x->sums + e, count, NULL, on);
        Saying saying = {x, e};
        on.each(add_said, &saying, count, lissom_chunk(count, 4 * x->width, on.threads), on.threads);
    }
}

/* Rows are picked in their order, so that none is written before it is read. */
static void pick(const Pick *p, Pass *pass) {
    for (const Rest *r = p->rests; r < p->rests + p->count; r++)
        for (ptrdiff_t m = 0; m < pass->picks; m++) {
            const ptrdiff_t from = pass->picked[m], stride = r->at.stride;
            if (from != m) memcpy(r->at.at + m * stride, r->at.at + from * stride, sizeof(float) * (size_t)r->width);
        }
    pass->rows = pass->picks;
}

static const Work WORK[] = {
    [EMBED] = embed, [ROTARY] = rotary, [MAKE] = make, [EXPERTS] = route};

/* Whether a row asks nothing of others, and little of memory. */
static int by_rows(const Operation *o) {
    const Linear *l = o->what;
    return o->code == LINEAR ? lissom_weights(l) <= SMALL : o->code < LINEAR;
}

/* Several operations for a few rows, whose numbers stay near the processor from one to the next. */
static void chain(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    Task task = *(const Task *)given;
    for (ptrdiff_t end; first < last; first = end) {
        end = last - first < MANY ? last : first + MANY;
        for (const Operation *o = task.first; o < task.last; o++) {
            task.what = o->what;
            if (o->code == LINEAR) lissom_multiply_rows(o->what, task.kernel, first, end, thread);
            else WORK[o->code](&task, first, end, thread);
        }
    }
}

/* The first part of a share, one of `shares` of the rows: parts are in that in which their middle is. */
static const Part *part_at(const Pass *pass, ptrdiff_t share, ptrdiff_t shares) {
    const Part *p = pass->part;
    while (p < pass->part + pass->parts && (p->row + p->count / 2) * shares < share * pass->rows) p++;
    return p;
}

static ptrdiff_t row_at(const Pass *pass, ptrdiff_t share, ptrdiff_t shares) {
    const Part *p = part_at(pass, share, shares);
    return p < pass->part + pass->parts ? p->row : pass->rows;
}

/* All operations for a share of the parts, whose tokens ask nothing of others. */
static void along(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    Task task = *(const Task *)given;
    const ptrdiff_t shares = task.shares, begin = row_at(task.pass, first, shares), end = row_at(task.pass, last, shares);
    const Part *from = part_at(task.pass, first, shares), *to = part_at(task.pass, last, shares);
    task.shares = 1;
    for (const Operation *o = task.first, *stop = task.last; o < stop; o++) {
        for (task.first = o; o < stop && o->code != WHOLE;) o++;
        task.last = o;
        chain(&task, begin, end, thread);
        if (o == stop) return;
        const Whole *w = task.what = o->what;
        lissom_attend_whole(&task, (from - task.pass->part) * w->heads, (to - task.pass->part) * w->heads, thread);
    }
}

/* Whether parts are all that tokens ask of, and can be shared out so that no thread waits long for another. */
static int apart(const Operation *o, const Operation *end, const Pass *pass, ptrdiff_t shares) {
    for (; o < end; o++)
        if (o->code != WHOLE && !by_rows(o)) return 0;
    for (ptrdiff_t share = 0; share < shares; share++)
        if (8 * shares * (row_at(pass, share + 1, shares) - row_at(pass, share, shares)) > 9 * pass->rows) return 0;
    return 1;
}

static void run(const Operation *o, Task *task, Machine on) {
    const Pass *pass = task->pass;
    const ptrdiff_t rows = pass->rows;
    task->what = o->what;
    if (o->code == LINEAR) {
        lissom_multiply(o->what, rows, NULL, on);
    } else if (o->code == PICK) {
        pick(o->what, task->pass);
    } else if (o->code == BOUND) {
        const Bound *b = o->what;
        on.kernel->bound(b->at, rows * b->width, b->cap);
    } else if (o->code == WHOLE) {
        const Whole *w = o->what;
        const ptrdiff_t heads = pass->parts * w->heads;
        task->shares = (TURNS * on.threads - 1) / heads + 1;
        on.each(lissom_attend_whole, task, heads * task->shares, 1, on.threads);
    } else if (o->code == ATTENTION) {
        lissom_attend(o->what, task, on);
    } else {
        on.each(WORK[o->code], task, rows, lissom_chunk(rows, 1 << 16, on.threads), on.threads);
    }
    if (o->code == EXPERTS) ask(o->what, rows, on);
}

/* Operations in a chain if there are rows enough for all threads, else the next one; returns where to go on. */
static const Operation *run_some(const Operation *o, const Operation *end, Task *task, Machine on) {
    const ptrdiff_t rows = task->pass->rows, shares = (rows + MANY * on.threads - 1) / (MANY * on.threads) * on.threads;
    task->first = task->last = o;
    while (rows >= SOME * on.threads && task->last < end && by_rows(task->last)) task->last++;
    if (task->last == o) {
        run(o, task, on);
        return o + 1;
    }
    on.each(chain, task, rows, (rows + shares - 1) / shares, on.threads);
    return task->last;
}

/* The operations in order, while there are rows; 0, or -1 where memory is short. */
EXPORT int lissom_step(const Operation *operations, ptrdiff_t count, const Pass *pass, int kernel, int threads,
                       int beside_torch) {
    const Machine on = {lissom_kernel(kernel), beside_torch ? lissom_each_beside_torch : lissom_each, threads};
    Pass left = *pass;
    Task task = {.pass = &left, .kernel = on.kernel, .threads = threads};
    Queries *queries = lissom_queries(operations, operations + count, &task);
    float *scratch = malloc(sizeof(float) * (size_t)(task.room * threads) + 64);
    const int failed = !(queries && scratch);
    if (!failed) {
        task.scratch = scratch + (64 - (uintptr_t)scratch % 64) / sizeof(float);
        const Operation *o = operations, *end = o + count;
        if (pass->rows >= SOME * threads && apart(o, end, pass, threads)) {
            task.first = o, task.last = end, task.shares = threads;
            on.each(along, &task, threads, 1, threads);
        } else {
            while (o < end && left.rows) o = run_some(o, end, &task, on);
        }
    }
    free(queries);
    free(scratch);
    return -failed;
}

/* Bytes that one page of keys and values takes. */
EXPORT ptrdiff_t lissom_page_bytes(const Attention *a) { return page_bytes(a); }
