/* What a model does for the tokens of one pass, as the kernels are given it. */

/* A pass has a row for each token; the tokens of one sequence follow one another. Matrices are of floats, and an operation
   reads and writes columns of them. Keys and values lie in pages of PAGE tokens. A page of one layer holds, one head after
   the other, first the keys of all heads and then their values:
       keys    [size][PAGE], so that a vector is one feature of all tokens
       values  [PAGE][wide], wide = size up to a multiple of 16
   Those of type BFLOAT16 stand two by two, as [size / 2][PAGE][2] and [PAGE / 2][wide][2], since two of them are multiplied
   and summed at once, and those of type INT8 four by four. These are a byte each, 128 for zero, and are followed by PAGE
   scales; queries and weights become integers too. */
#ifndef LISSOM_STEP_H
#define LISSOM_STEP_H

#include "images.h"
#include "panels.h"

/* Tokens of a page, those that attention takes at once, and those after which it sums anew. */
enum { PAGE = 16, KEYS = 64, SPAN = 512 };
enum { LOOKERS = 32 }; /* queries that look together at what sees itself whole */

typedef enum { FLOAT32, BFLOAT16, FLOAT16, INT8 } Type;
typedef enum { AS_IS, NORMED, SCALED, GATED, CENTRED, ACTIVE } Kind;
typedef enum { SILU, GELU_TANH, RELU, GELU, RELU6, HARD_SWISH, NONE } Gate;
typedef enum { LSTM, GRU, TANH, RECTIFIED } Cell; /* kinds of recurrent layers */

typedef struct {
    float *at; /* of the first row */
    ptrdiff_t stride;
} Columns;

/* How the input of a layer is made of what lies in a row: x, norm(x) * weight, x * weight, gate(y) * x,
   norm(x - its mean) * weight + bias, or gate(x). */
typedef struct {
    Columns from, gate;
    const float *weight, *bias;
    ptrdiff_t width;
    int kind, shape; /* a Kind and a Gate */
    float eps;
} Source;

/* A matrix as PyTorch holds it, [outputs][inputs]; or, where there is a mask, those of its weights that are not 0. */
typedef struct {
    const void *weight;
    const float *bias;     /* or null */
    const uint8_t *mask;   /* or null: a bit for each weight, row by row, the lowest first */
    const int64_t *starts; /* where the weights of each row begin, and where the last end */
    ptrdiff_t outputs, inputs;
    int type, from; /* of the weights; of the rows that are multiplied: FLOAT32, or BFLOAT16 as the weights */
} Dense;

/* The angles by which the features of queries and keys are turned in this pass: pairs i and i + half of each head. */
typedef struct {
    const float *frequency; /* [half], radians a token */
    float *cosine, *sine;   /* [rows][half], made for each pass */
    ptrdiff_t half;
    float scale;
} Rotary;

typedef struct {
    Columns query, key, value, to;
    ptrdiff_t heads, groups, size; /* query heads, key-value heads, features of a head */
    const float *query_norm, *key_norm; /* [size], or null */
    const Rotary *rotary;               /* or null */
    uint8_t *pages;
    ptrdiff_t window; /* the last tokens that are seen, or 0: all */
    int type;         /* of keys and values: FLOAT32, BFLOAT16 or INT8 */
    float eps, scale, cap; /* of norms; of scores; scores stay within ±cap, where it is not 0 */
} Attention;

/* Attention in which all tokens of a sequence see one another; nothing of it is kept. */
typedef struct {
    Columns query, key, value, to;
    ptrdiff_t heads, size; /* features of a head */
    float scale;           /* of scores */
} Whole;

/* One head of a sequence of `count` tokens from row `row` on, of which `first` up to `last` look. */
typedef struct {
    ptrdiff_t row, count, head, first, last;
} Seen;

/* Some tokens of one sequence, of which the first is at position `place`, for the heads that share keys of some groups; `end`
   is the position behind the last token of the part that they belong to. They see all that comes before, SPAN tokens after
   SPAN tokens; or those of one span, and what these give is kept, to be united with what the others give. */
typedef struct {
    ptrdiff_t row, count, place, end;
    ptrdiff_t group, groups; /* the first group, and how many */
    ptrdiff_t span, spans;   /* which one, and, for the first, how many there are */
    float *seen;             /* of the heads of all groups, or null where there is nothing to be united */
    const int32_t *pages;    /* of the sequence */
} Queries;

typedef struct {
    /* All rows times panels `first` up to `last`. */
    void (*multiply)(const Panels *, const Rows *, ptrdiff_t first, ptrdiff_t last);
    /* One block of a row: its largest magnitude as the bits of a float; NaN is larger than all others. */
    uint32_t (*largest)(const float *x, ptrdiff_t count);
    /* One block of finite numbers to integers, padded with zeros to `block`; returns their sum. */
    int32_t (*round)(const float *x, ptrdiff_t count, ptrdiff_t block, float factor, int8_t *q);
    /* The input of a layer, in one row. */
    void (*make)(const Source *, ptrdiff_t row, float *to);
    /* A row as bfloat16. */
    void (*narrow)(const float *x, ptrdiff_t count, uint16_t *to);
    /* `count` rows x [inputs] times outputs `first` up to `last` of a dense matrix; written, or added. */
    void (*dense)(const Dense *, const void *x, ptrdiff_t count, Columns to, int add, ptrdiff_t first, ptrdiff_t last);
    /* One head of a token, normed where there is a weight, and turned by the angles of `row` where there are any. */
    void (*turn)(const Attention *, const float *norm, ptrdiff_t row, float *head);
    /* Keys or values become part of the cache: those of one token and head, in `slot` of the page. */
    void (*keep)(const Attention *, float *head, int value, uint8_t *page, ptrdiff_t slot);
    /* Attention of some queries; `scratch` holds scratch_of() floats. */
    void (*attend)(const Attention *, const Queries *, float *scratch);
    /* What all spans of a sequence, listed one after the other, give the heads of a group. */
    void (*unite)(const Attention *, const Queries *spans, ptrdiff_t group);
    /* Attention of a sequence to itself; `scratch` holds whole_room() floats. */
    void (*attend_whole)(const Whole *, const Seen *, float *scratch);
    /* x = cap tanh(x / cap) */
    void (*bound)(float *x, ptrdiff_t count, float cap);
    /* Σ exp((x - best) by) */
    float (*likely)(const float *x, ptrdiff_t count, float best, float by);
    /* What a recurrent layer of a kind of Cell says of a step, of `size` numbers, from gates and from what was said before. */
    void (*say)(int kind, const float *gates, const float *heard, const float *before, float *cell, float *said, ptrdiff_t size);
    /* One block of rows of an image's map, and of it splits `first` up to `last` of the channels. */
    void (*image)(const Step *, float *room, char *seen, ptrdiff_t block, ptrdiff_t first, ptrdiff_t last);
} Kernel;

extern const Kernel lissom_portable, lissom_avx2, lissom_avxvnni, lissom_avx512, lissom_avx512bf16;

static inline ptrdiff_t wide_of(const Attention *a) { return (a->size + 15) / 16 * 16; }
/* Floats of what a query has seen: the sums of values, and of their weights, and the largest score. */
static inline ptrdiff_t seen_of(const Attention *a) { return wide_of(a) + 32; }
/* The bytes in which features of a key, or tokens of a value, stand together, and how many do. */
enum { CELL = 4 };
static inline ptrdiff_t together(int type) { return type == INT8 ? 4 : type == BFLOAT16 ? 2 : 1; }
static inline ptrdiff_t cells_of(const Attention *a) { return (a->size + together(a->type) - 1) / together(a->type); }
/* Bytes of one head's keys, or values, in a page, without their scales and with them. */
static inline ptrdiff_t key_codes(const Attention *a) { return cells_of(a) * PAGE * CELL; }
static inline ptrdiff_t value_codes(const Attention *a) {
    return PAGE / together(a->type) * wide_of(a) * CELL;
}
static inline ptrdiff_t scales_of(const Attention *a) { return a->type == INT8 ? PAGE * (ptrdiff_t)sizeof(float) : 0; }
static inline ptrdiff_t keys_bytes(const Attention *a) { return key_codes(a) + scales_of(a); }
static inline ptrdiff_t values_bytes(const Attention *a) { return value_codes(a) + scales_of(a); }
static inline ptrdiff_t page_bytes(const Attention *a) { return a->groups * (keys_bytes(a) + values_bytes(a)); }
static inline uint8_t *keys_at(const Attention *a, ptrdiff_t page, ptrdiff_t group) {
    return a->pages + page * page_bytes(a) + group * keys_bytes(a);
}
static inline uint8_t *values_at_page(const Attention *a, ptrdiff_t page, ptrdiff_t group) {
    return a->pages + page * page_bytes(a) + a->groups * keys_bytes(a) + group * values_bytes(a);
}

/* Numbers up to whole vectors; the floats that a sequence takes: keys, values, queries, what these are given, and scores. */
static inline ptrdiff_t vectors_of(ptrdiff_t count) { return (count + 15) / 16 * 16; }
static inline ptrdiff_t whole_room(const Whole *w, ptrdiff_t count) {
    const ptrdiff_t wide = vectors_of(w->size), tokens = vectors_of(count);
    return 2 * wide * tokens + LOOKERS * (2 * wide + tokens);
}

#endif
