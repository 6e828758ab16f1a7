/* AVX2, with VNNI where the processor has it for vectors of 32 bytes: half a panel is two of them. */
#include "step.h"

#if defined(__x86_64__)
#include <immintrin.h>

#ifndef VNNI
#define VNNI 0
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define KERNEL lissom_avx2
#endif
#define INLINE static inline __attribute__((always_inline)) TARGET

#define TALL 2
#if !VNNI
#define SHIFT 128
#define PANEL_ROWS 4
#endif

typedef struct { __m256i low, high; } Codes;
typedef struct { __m256i low, high; } Ints;
typedef struct { __m256 low, high; } Floats;

INLINE __m256i load_half(const uint8_t *from) { return _mm256_loadu_si256((const __m256i *)from); }
INLINE Codes load(const uint8_t *from) { return (Codes){load_half(from), load_half(from + 32)}; }
INLINE __m256i shifted(__m256i v, int right) { return right < 0 ? _mm256_slli_epi16(v, -right) : _mm256_srli_epi16(v, right); }
INLINE __m256i bits_of(__m256i v, int right, int mask) {
    return _mm256_and_si256(right ? shifted(v, right) : v, _mm256_set1_epi8((char)mask));
}
INLINE Codes field(Codes v, int shift, int bits) {
    return (Codes){bits_of(v.low, shift, (1 << bits) - 1), bits_of(v.high, shift, (1 << bits) - 1)};
}
INLINE Codes high(Codes v, int shift, Codes c) {
    return (Codes){_mm256_or_si256(c.low, bits_of(v.low, shift - 2, 4)), _mm256_or_si256(c.high, bits_of(v.high, shift - 2, 4))};
}
INLINE Codes sign(Codes v, int shift) { return (Codes){bits_of(v.low, shift - 1, 2), bits_of(v.high, shift - 1, 2)}; }
INLINE __m256i look_half(__m256i c, const uint8_t *book, int books) {
    __m256i found = _mm256_shuffle_epi8(load_half(book), c);
    if (books == 4) {
        found = _mm256_blend_epi32(found, _mm256_shuffle_epi8(load_half(book + 64), c), 0x22);
        found = _mm256_blend_epi32(found, _mm256_shuffle_epi8(load_half(book + 128), c), 0x44);
        found = _mm256_blend_epi32(found, _mm256_shuffle_epi8(load_half(book + 192), c), 0x88);
    }
    return found;
}
INLINE Codes look(Codes c, const uint8_t *book, int books) {
    return (Codes){look_half(c.low, book, books), look_half(c.high, book + 32, books)};
}
INLINE __m256i dot_half(__m256i a, __m256i c, __m256i x) {
#if VNNI
    return _mm256_dpbusd_avx_epi32(a, c, x);
#else
    /* Two products of 8 bits would not fit in 16: the highest bit of codes is summed apart. */
    __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(c, _mm256_set1_epi8(127)), x);
    __m256i top = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(c, 7), _mm256_set1_epi8(1)), x);
    a = _mm256_add_epi32(a, _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
    return _mm256_add_epi32(a, _mm256_madd_epi16(top, _mm256_set1_epi16(128)));
#endif
}
INLINE Ints dot(Ints a, Codes c, int32_t x) {
    __m256i all = _mm256_set1_epi32(x);
    return (Ints){dot_half(a.low, c.low, all), dot_half(a.high, c.high, all)};
}
INLINE Ints ints(int32_t value) { return (Ints){_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
INLINE __m256i eight_bytes(const uint8_t *from) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from)); }
INLINE Ints minus_product(const uint8_t *zeros, int shift, int32_t sum) {
    const __m256i all = _mm256_set1_epi32(sum), from = _mm256_set1_epi32(shift);
    return (Ints){_mm256_mullo_epi32(_mm256_sub_epi32(from, eight_bytes(zeros)), all),
                  _mm256_mullo_epi32(_mm256_sub_epi32(from, eight_bytes(zeros + 8)), all)};
}
INLINE Floats floats(float value) { return (Floats){_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
INLINE Floats to_floats(Ints a) { return (Floats){_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
INLINE Floats times(Floats a, Floats b) { return (Floats){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
INLINE Floats add_product(Floats sum, Floats a, Floats b) {
    return (Floats){_mm256_fmadd_ps(a.low, b.low, sum.low), _mm256_fmadd_ps(a.high, b.high, sum.high)};
}
INLINE __m256 eight_halves(const uint16_t *from) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from)); }
INLINE Floats halves(const uint16_t *from) { return (Floats){eight_halves(from), eight_halves(from + 8)}; }
INLINE Floats load_floats(const float *from) { return (Floats){_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
INLINE void store_floats(float *to, Floats f, ptrdiff_t count) {
    if (count >= 16) {
        _mm256_storeu_ps(to, f.low);
        _mm256_storeu_ps(to + 8, f.high);
    } else if (count > 0) {
        float all[16];
        _mm256_storeu_ps(all, f.low);
        _mm256_storeu_ps(all + 8, f.high);
        __builtin_memcpy(to, all, sizeof(float) * (size_t)count);
    }
}
INLINE Floats some_floats(const float *from, ptrdiff_t count) {
    float all[16] = {0};
    if (count >= 16) return load_floats(from);
    if (count > 0) __builtin_memcpy(all, from, sizeof(float) * (size_t)count);
    return load_floats(all);
}
INLINE Floats plus(Floats a, Floats b) { return (Floats){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
INLINE Floats over(Floats a, Floats b) { return (Floats){_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
INLINE Floats larger(Floats a, Floats b) { return (Floats){_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
INLINE Floats smaller(Floats a, Floats b) { return (Floats){_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
INLINE __m256 unless_below_half(__m256 x, __m256 limit, __m256 value) {
    return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_NLT_UQ), value);
}
INLINE Floats unless_below(Floats x, float limit, Floats value) {
    const __m256 all = _mm256_set1_ps(limit);
    return (Floats){unless_below_half(x.low, all, value.low), unless_below_half(x.high, all, value.high)};
}
INLINE __m256 whole_half(__m256 a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE Floats whole(Floats a) { return (Floats){whole_half(a.low), whole_half(a.high)}; }
INLINE __m256 lifted_half(__m256 a, __m256 n) {
    __m256i exponent = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_set1_ps(-127), n));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23)));
}
INLINE Floats lifted(Floats a, Floats n) { return (Floats){lifted_half(a.low, n.low), lifted_half(a.high, n.high)}; }
INLINE float folded(Floats a, int add) {
    float all[8];
    _mm256_storeu_ps(all, add ? _mm256_add_ps(a.low, a.high) : _mm256_max_ps(a.low, a.high));
    for (int half = 4; half; half /= 2)
        for (int i = 0; i < half; i++)
            all[i] = add ? all[i] + all[i + half] : all[i] > all[i + half] ? all[i] : all[i + half];
    return all[0];
}
INLINE float total(Floats a) { return folded(a, 1); }
INLINE float greatest(Floats a) { return folded(a, 0); }
INLINE __m256 eight_brains(const uint16_t *from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16));
}
INLINE Floats brains(const uint16_t *from) { return (Floats){eight_brains(from), eight_brains(from + 8)}; }
INLINE __m256i eight_to_brains(__m256 f) {
    __m256i bits = _mm256_castps_si256(f), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
}
INLINE void store_brains(uint16_t *to, Floats f) {
    __m256i packed = _mm256_packus_epi32(eight_to_brains(f.low), eight_to_brains(f.high));
    _mm256_storeu_si256((__m256i *)to, _mm256_permute4x64_epi64(packed, 0xD8));
}
INLINE __m256 add_products_half(__m256 sum, __m256 v, __m256 w) {
    const __m256i bits = _mm256_castps_si256(v), both = _mm256_castps_si256(w), upper = _mm256_set1_epi32((int)0xFFFF0000);
    sum = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(both, 16)), sum);
    return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(bits, upper)), _mm256_castsi256_ps(_mm256_and_si256(both, upper)), sum);
}
INLINE Floats add_products(Floats sum, Floats v, Floats w) {
    return (Floats){add_products_half(sum.low, v.low, w.low), add_products_half(sum.high, v.high, w.high)};
}
INLINE Floats add_pairs(Floats sum, Floats v, uint32_t pair) {
    const __m256 both = _mm256_castsi256_ps(_mm256_set1_epi32((int)pair));
    return add_products(sum, v, (Floats){both, both});
}
INLINE Floats some_brains(const uint16_t *from, ptrdiff_t count) {
    float all[16] = {0};
    if (count >= 32) return load_floats((const float *)from);
    if (count > 0) __builtin_memcpy(all, from, sizeof(uint16_t) * (size_t)count);
    return load_floats(all);
}
INLINE Floats first_of_pairs(Floats v) {
    const __m256 lower = _mm256_castsi256_ps(_mm256_set1_epi32(0xFFFF));
    return (Floats){_mm256_and_ps(v.low, lower), _mm256_and_ps(v.high, lower)};
}

#if VNNI
#define OFFSET(step) 128
#else
#define OFFSET(step) ((step)->pairs ? (step)->offset : 0)
#define SUMS_PAIRS
#endif
INLINE __m256i dot_signed_half(__m256i a, __m256i w, __m256i x) {
#if VNNI
    return _mm256_dpbusd_avx_epi32(a, x, w);
#else
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)); /* 2 * 127 * 128 fits */
    return _mm256_add_epi32(a, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}
INLINE Ints dot_signed(Ints a, Codes w, int32_t x) {
    const __m256i all = _mm256_set1_epi32(x);
    return (Ints){dot_signed_half(a.low, w.low, all), dot_signed_half(a.high, w.high, all)};
}
INLINE __m256i eight_ints(const int32_t *from) { return _mm256_loadu_si256((const __m256i *)from); }
INLINE Ints offset_by(const int32_t *sums, int offset) {
    const __m256i less = _mm256_set1_epi32(-offset);
    return (Ints){_mm256_mullo_epi32(eight_ints(sums), less), _mm256_mullo_epi32(eight_ints(sums + 8), less)};
}
INLINE void store_ints(int32_t *to, Ints a) {
    _mm256_storeu_si256((__m256i *)to, a.low);
    _mm256_storeu_si256((__m256i *)(to + 8), a.high);
}
INLINE Ints magnitude(Floats x) {
    const __m256i all = _mm256_set1_epi32(0x7FFFFFFF);
    return (Ints){_mm256_and_si256(_mm256_castps_si256(x.low), all), _mm256_and_si256(_mm256_castps_si256(x.high), all)};
}
INLINE Ints higher(Ints a, Ints b) { return (Ints){_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)}; }
INLINE void store_bytes(char *to, Floats f, int offset) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(f.low), _mm256_cvtps_epi32(f.high)); /* by lanes: 0 2 1 3 */
    const __m256i ordered = _mm256_add_epi16(_mm256_permute4x64_epi64(words, 0xD8), _mm256_set1_epi16((short)offset));
    const __m128i low = _mm256_castsi256_si128(ordered), high = _mm256_extracti128_si256(ordered, 1);
    _mm_storeu_si128((__m128i *)to, offset ? _mm_packus_epi16(low, high) : _mm_packs_epi16(low, high));
}

#define ABREAST 2
#define ACROSS 2
#define ALONG 2

#include "tile.h"
#include "rows.h"
#include "dense.h"
#include "maps.h"

TARGET static uint32_t largest(const float *x, ptrdiff_t count) {
    __m256i top = _mm256_setzero_si256();
    uint32_t found[8], most = 0;
    ptrdiff_t j = 0;
    for (; j + 8 <= count; j += 8)
        top = _mm256_max_epi32(top, _mm256_and_si256(load_half((const uint8_t *)(x + j)), _mm256_set1_epi32(0x7FFFFFFF)));
    _mm256_storeu_si256((__m256i *)found, top);
    for (int i = 0; i < 8; i++) most = found[i] > most ? found[i] : most;
    for (; j < count; j++) {
        uint32_t one_more;
        memcpy(&one_more, x + j, 4);
        one_more &= 0x7FFFFFFF;
        most = one_more > most ? one_more : most;
    }
    return most;
}

TARGET static int32_t round_block(const float *x, ptrdiff_t count, ptrdiff_t block, float factor, int8_t *q) {
    int32_t sum = 0;
    for (ptrdiff_t j = 0; j < block; j += 8) {
        float part[8] = {0};
        int32_t whole[8];
        const ptrdiff_t left = count - j;
        if (left > 0) memcpy(part, x + j, sizeof(float) * (size_t)(left < 8 ? left : 8));
        __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(part), _mm256_set1_ps(factor));
        _mm256_storeu_si256((__m256i *)whole, _mm256_cvtps_epi32(scaled));
        for (int i = 0; i < 8; i++) {
            q[j + i] = (int8_t)whole[i];
            sum += whole[i];
        }
    }
    return sum;
}

#include "attend.h"
#include "whole.h"

const Kernel KERNEL = {multiply, largest, round_block, make, narrow, dense, turn, keep,
                       attend, unite, attend_whole, bound, likely, say, image};
#endif
