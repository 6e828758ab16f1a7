/* Plain C: any processor, in loops that compilers turn into vectors. */
#include "native.h"

#define TARGET
#define INLINE static inline __attribute__((always_inline))

#define UNROLL
#define TALL 2

typedef uint32_t Codes __attribute__((vector_size(64))); /* 4 codes in each */
typedef int32_t Ints __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));

#define BYTES(value) ((uint32_t)(value) * 0x01010101u)

INLINE Codes load(const uint8_t *from) {
    Codes c;
    __builtin_memcpy(&c, from, 64);
    return c;
}
INLINE Codes field(Codes v, int shift, int bits) { return v >> shift & BYTES((1 << bits) - 1); }
INLINE Codes high(Codes v, int shift, Codes c) { return c | (v >> shift & BYTES(1)) << 2; }
INLINE Codes sign(Codes v, int shift) { return (v >> shift & BYTES(1)) << 1; }
INLINE Codes look(Codes c, const uint8_t *book, int books) {
    uint8_t at[64];
    __builtin_memcpy(at, &c, 64);
    for (int i = 0; i < 64; i++) at[i] = book[(books == 4 ? i / 4 % 4 * 64 : 0) + i / 16 * 16 + at[i]];
    return load(at);
}
INLINE Ints dot(Ints a, Codes c, int32_t x) {
    int8_t four[4];
    __builtin_memcpy(four, &x, 4);
    a += (Ints)(c & 255) * four[0] + (Ints)(c >> 8 & 255) * four[1];
    return a + (Ints)(c >> 16 & 255) * four[2] + (Ints)(c >> 24) * four[3];
}
INLINE Ints ints(int32_t value) { return (Ints){0} + value; }
INLINE Ints minus_product(const uint8_t *zeros, int shift, int32_t sum) {
    Ints made;
    for (int i = 0; i < 16; i++) made[i] = (shift - zeros[i]) * sum;
    return made;
}
INLINE Floats floats(float value) { return (Floats){0} + value; }
INLINE Floats to_floats(Ints a) { return __builtin_convertvector(a, Floats); }
INLINE Floats times(Floats a, Floats b) { return a * b; }
INLINE Floats add_product(Floats sum, Floats a, Floats b) { return sum + a * b; }
INLINE Floats halves(const uint16_t *from) {
    Floats made;
    for (int i = 0; i < 16; i++) made[i] = lissom_half(from[i]);
    return made;
}
INLINE Floats load_floats(const float *from) {
    Floats made;
    __builtin_memcpy(&made, from, 64);
    return made;
}
INLINE void store_floats(float *to, Floats f, ptrdiff_t count) {
    if (count > 0) __builtin_memcpy(to, &f, sizeof(float) * (size_t)(count < 16 ? count : 16));
}

INLINE Floats some_floats(const float *from, ptrdiff_t count) {
    Floats made = {0};
    if (count > 0) __builtin_memcpy(&made, from, sizeof(float) * (size_t)(count < 16 ? count : 16));
    return made;
}
INLINE Floats plus(Floats a, Floats b) { return a + b; }
INLINE Floats over(Floats a, Floats b) { return a / b; }
INLINE Floats chosen(Ints where, Floats a, Floats b) { return (Floats)(((Ints)a & where) | ((Ints)b & ~where)); }
INLINE Floats larger(Floats a, Floats b) { return chosen(a > b, a, b); }
INLINE Floats smaller(Floats a, Floats b) { return chosen(a < b, a, b); }
INLINE Floats unless_below(Floats x, float limit, Floats value) { return chosen(x < limit, floats(0), value); }
INLINE Floats whole(Floats a) { return a + 0x1.8p23f - 0x1.8p23f; }
INLINE Floats lifted(Floats a, Floats n) {
    return a * (Floats)((__builtin_convertvector(larger(floats(-127), n), Ints) + 127) << 23);
}
INLINE float total(Floats a) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) a[i] += a[i + half];
    return a[0];
}
INLINE float greatest(Floats a) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) a[i] = a[i] > a[i + half] ? a[i] : a[i + half];
    return a[0];
}
INLINE Floats brains(const uint16_t *from) {
    Floats made;
    for (int i = 0; i < 16; i++) {
        const uint32_t bits = (uint32_t)from[i] << 16;
        __builtin_memcpy((char *)&made + 4 * i, &bits, 4);
    }
    return made;
}
INLINE void store_brains(uint16_t *to, Floats f) {
    for (int i = 0; i < 16; i++) {
        uint32_t bits;
        __builtin_memcpy(&bits, (char *)&f + 4 * i, 4);
        to[i] = (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
    }
}
INLINE Floats add_products(Floats sum, Floats v, Floats w) {
    sum += (Floats)((Codes)v << 16) * (Floats)((Codes)w << 16);
    return sum + (Floats)((Codes)v & 0xFFFF0000u) * (Floats)((Codes)w & 0xFFFF0000u);
}
INLINE Floats add_pairs(Floats sum, Floats v, uint32_t pair) { return add_products(sum, v, (Floats)((Codes){0} + pair)); }
INLINE Floats some_brains(const uint16_t *from, ptrdiff_t count) {
    Floats made = {0};
    if (count > 0) __builtin_memcpy(&made, from, sizeof(uint16_t) * (size_t)(count < 32 ? count : 32));
    return made;
}
INLINE Floats first_of_pairs(Floats v) { return (Floats)((Codes)v & 0xFFFFu); }

#define OFFSET(step) 0
INLINE Ints dot_signed(Ints a, Codes w, int32_t x) {
    int8_t four[4];
    __builtin_memcpy(four, &x, 4);
    const Ints v = (Ints)w;
    a += (v << 24 >> 24) * four[0] + (v << 16 >> 24) * four[1];
    return a + (v << 8 >> 24) * four[2] + (v >> 24) * four[3];
}
INLINE Ints offset_by(const int32_t *sums, int offset) { return (void)sums, (void)offset, ints(0); }
INLINE void store_ints(int32_t *to, Ints a) { __builtin_memcpy(to, &a, 64); }
INLINE Ints magnitude(Floats x) { return (Ints)x & 0x7FFFFFFF; }
INLINE Ints higher(Ints a, Ints b) { return (a & (a > b)) | (b & ~(a > b)); }
INLINE void store_bytes(char *to, Floats f, int offset) {
    (void)offset;
    for (int i = 0; i < 16; i++) to[i] = (char)(int8_t)(f[i] + 0x1.8p23f - 0x1.8p23f);
}

#define ABREAST 2
#define ACROSS 2
#define ALONG 2

#include "tile.h"
#include "rows.h"
#include "dense.h"
#include "maps.h"

static uint32_t largest(const float *x, ptrdiff_t count) {
    uint32_t most = 0;
    for (ptrdiff_t j = 0; j < count; j++) {
        uint32_t bits;
        memcpy(&bits, x + j, 4);
        bits &= 0x7FFFFFFF;
        most = bits > most ? bits : most;
    }
    return most;
}

static int32_t round_block(const float *x, ptrdiff_t count, ptrdiff_t block, float factor, int8_t *q) {
    int32_t sum = 0;
    for (ptrdiff_t j = 0; j < block; j++) {
        const float scaled = j < count ? x[j] * factor : 0;
        q[j] = (int8_t)(scaled + 0x1.8p23f - 0x1.8p23f); /* to nearest, ties to even */
        sum += q[j];
    }
    return sum;
}

#include "attend.h"
#include "whole.h"

const Kernel lissom_portable = {multiply, largest, round_block, make, narrow, dense, turn, keep,
                                attend, unite, attend_whole, bound, likely, say, image};
