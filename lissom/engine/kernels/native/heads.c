/* Attention of all sequences of a pass, shared out among threads. */
#include <stdlib.h>

#include "task.h"

enum {
    TOKENS = 16, /* of one sequence that attend together */
    FEW = 4,     /* pieces of attention for each thread, where there are not more */
};

/* The heads of a group of one token: queries and the key are turned, key and value kept. */
static void remember(const Task *task, const Attention *a, ptrdiff_t row, ptrdiff_t group) {
    const ptrdiff_t slot = task->pass->slots[row], page = slot / PAGE, share = a->heads / a->groups;
    float *query = a->query.at + row * a->query.stride + group * share * a->size;
    float *key = a->key.at + row * a->key.stride + group * a->size;
    float *value = a->value.at + row * a->value.stride + group * a->size;
    for (ptrdiff_t h = 0; h < share; h++) task->kernel->turn(a, a->query_norm, row, query + h * a->size);
    task->kernel->turn(a, a->key_norm, row, key);
    task->kernel->keep(a, key, 0, keys_at(a, page, group), slot % PAGE);
    task->kernel->keep(a, value, 1, values_at_page(a, page, group), slot % PAGE);
}

static void remember_rows(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    const Task *task = given;
    const Attention *a = task->what;
    (void)thread;
    for (ptrdiff_t m = first; m < last; m++)
        for (ptrdiff_t group = 0; group < a->groups; group++) remember(task, a, m, group);
}

/* Groups of which a thread reads the keys, and the values, that lie behind one another: as many as its room is for, and so
   few that all threads have something to do. */
static ptrdiff_t together_of(const Task *task, const Attention *a) {
    const ptrdiff_t fit = TOKENS / task->most, shared = task->pieces * a->groups / (FEW * task->threads);
    const ptrdiff_t some = fit < shared ? fit : shared;
    return some < 1 ? 1 : some < a->groups ? some : a->groups;
}

static void attend(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    const Task *task = given;
    const Attention *a = task->what;
    const ptrdiff_t some = together_of(task, a), shares = (a->groups + some - 1) / some;
    for (ptrdiff_t item = first; item < last; item++) {
        Queries queries = task->queries[item / shares];
        queries.group = item % shares * some;
        queries.groups = queries.group + some < a->groups ? some : a->groups - queries.group;
        for (ptrdiff_t m = 0; task->apart && m < queries.count; m++)
            for (ptrdiff_t g = 0; g < queries.groups; g++) remember(task, a, queries.row + m, queries.group + g);
        task->kernel->attend(a, &queries, task->scratch + thread * task->room);
    }
}

static void unite(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    const Task *task = given;
    const Attention *a = task->what;
    (void)thread;
    for (ptrdiff_t item = first; item < last; item++) {
        const Queries *spans = task->queries + item / a->groups;
        if (spans->spans) task->kernel->unite(a, spans, item % a->groups);
    }
}

void lissom_attend_whole(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    const Task *task = given;
    const Whole *w = task->what;
    for (ptrdiff_t item = first; item < last; item++) {
        const ptrdiff_t share = item % task->shares, head = item / task->shares % w->heads;
        const Part *part = task->pass->part + item / task->shares / w->heads;
        const Seen seen = {.row = part->row, .count = part->count, .head = head,
                           .first = part->count * share / task->shares, .last = part->count * (share + 1) / task->shares};
        task->kernel->attend_whole(w, &seen, task->scratch + thread * task->room);
    }
}

/* Floats that attention keeps of each token. */
static ptrdiff_t seen_by(const Operation *o) {
    const Attention *a = o->what;
    return o->code == ATTENTION ? a->heads * seen_of(a) : 0;
}

/* Floats of scratch that an operation takes for each thread. */
static ptrdiff_t room_for(const Operation *o, const Pass *pass) {
    ptrdiff_t longest = 0;
    if (o->code == ATTENTION) {
        const Attention *a = o->what;
        return TOKENS * (a->heads / a->groups) * (wide_of(a) + KEYS + 2 * seen_of(a) + 4);
    }
    if (o->code != WHOLE) return 0;
    for (const Part *p = pass->part; p < pass->part + pass->parts; p++) longest = p->count > longest ? p->count : longest;
    return whole_room(o->what, longest);
}

static ptrdiff_t pieces_of(const Part *p) { return (p->count + TOKENS - 1) / TOKENS; }
static ptrdiff_t spans_of(const Part *p) { return (p->place + p->count + SPAN - 1) / SPAN; }

/* The last of a sequence come first, which see most: then threads end together. */
static Queries *list(const Part *p, Queries *to) {
    for (ptrdiff_t at = (p->count - 1) / TOKENS * TOKENS; at >= 0; at -= TOKENS)
        *to++ = (Queries){.row = p->row + at, .count = p->count - at < TOKENS ? p->count - at : TOKENS,
                          .place = p->place + at, .end = p->place + p->count, .pages = p->pages};
    return to;
}

/* A few tokens, span by span. */
static Queries *list_spans(const Part *p, Queries *to, float *seen, ptrdiff_t size) {
    for (ptrdiff_t s = 0; s < spans_of(p); s++, seen += p->count * size)
        *to++ = (Queries){.row = p->row, .count = p->count, .place = p->place, .end = p->place + p->count, .span = s,
                          .spans = s ? 0 : spans_of(p), .seen = seen, .pages = p->pages};
    return to;
}

static ptrdiff_t work_of(const Task *task, const Attention *a) {
    ptrdiff_t pairs = 0;
    for (const Queries *q = task->queries; q < task->queries + task->pieces; q++)
        pairs += q->count * ((q->seen ? SPAN : q->end) + KEYS);
    return pairs / task->pieces * (a->heads / a->groups) * a->size * 8;
}

/* What attends, piece by piece: whole sequences where their `groups` share out evenly, else spans of them. `size` is the floats
   of what a token's heads have seen. */
static Queries *listed(const Pass *pass, ptrdiff_t groups, ptrdiff_t size, Task *task) {
    ptrdiff_t pieces = 0, spans = 0, room = 0, longest = 0, all = 0;
    for (const Part *p = pass->part; p < pass->part + pass->parts; p++) {
        const ptrdiff_t length = p->place + p->count, most = p->count < TOKENS ? p->count : TOKENS;
        pieces += pieces_of(p), spans += spans_of(p), room += spans_of(p) * p->count, all += length;
        longest = length > longest ? length : longest;
        task->most = most > task->most ? most : task->most;
    }
    const int few = pieces == pass->parts, cut = few && longest > SPAN && longest * FEW * task->threads > all * groups;
    Queries *made = malloc(sizeof(Queries) * (size_t)(cut ? spans : pieces) + sizeof(float) * (size_t)(cut ? room * size : 0) + 64);
    if (!made) return NULL;
    Queries *next = made;
    float *seen = (float *)(made + spans);
    for (const Part *p = pass->part; p < pass->part + pass->parts; seen += spans_of(p) * p->count * size, p++)
        next = cut ? list_spans(p, next, seen, size) : list(p, next);
    task->queries = made;
    task->pieces = next - made;
    task->apart = few && !cut;
    return made;
}

Queries *lissom_queries(const Operation *o, const Operation *end, Task *task) {
    ptrdiff_t size = 0, groups = 0;
    for (; o < end; o++) {
        const Attention *a = o->what;
        const ptrdiff_t room = room_for(o, task->pass), seen = seen_by(o);
        task->room = room > task->room ? room : task->room;
        size = seen > size ? seen : size;
        if (o->code == ATTENTION && (!groups || a->groups < groups)) groups = a->groups;
    }
    return listed(task->pass, groups, size, task);
}

void lissom_attend(const Attention *a, Task *task, Machine on) {
    const ptrdiff_t rows = task->pass->rows, some = together_of(task, a);
    const ptrdiff_t items = task->pieces * ((a->groups + some - 1) / some);
    task->what = a;
    if (!task->apart) on.each(remember_rows, task, rows, lissom_chunk(rows, 1 << 16, on.threads), on.threads);
    on.each(attend, task, items, lissom_chunk(items, work_of(task, a) * some, on.threads), on.threads);
    if (task->queries->seen) on.each(unite, task, task->pieces * a->groups, a->groups, on.threads);
}
