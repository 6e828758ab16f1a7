/* AVX-512 with VNNI, and with BF16 and VBMI2 where the processor has them: a vector of 64 bytes is half a panel. */
#include "step.h"

#if defined(__x86_64__)
#include <immintrin.h>

#ifndef BF16
#define BF16 0
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prfchw,avx2,fma,f16c")))
#define KERNEL lissom_avx512
#endif
#define INLINE static inline __attribute__((always_inline)) TARGET

#define TALL 6

typedef __m512i Codes;
typedef __m512i Ints;
typedef __m512 Floats;

INLINE Codes load(const uint8_t *from) { return _mm512_loadu_si512(from); }
INLINE Codes field(Codes v, int shift, int bits) {
    return _mm512_and_si512(shift ? _mm512_srli_epi16(v, (unsigned)shift) : v, _mm512_set1_epi8((char)((1 << bits) - 1)));
}
INLINE Codes high(Codes v, int shift, Codes c) {
    Codes moved = shift < 2 ? _mm512_slli_epi16(v, (unsigned)(2 - shift)) : _mm512_srli_epi16(v, (unsigned)(shift - 2));
    return _mm512_ternarylogic_epi32(c, moved, _mm512_set1_epi8(4), 0xF8); /* c | moved & 4 */
}
INLINE Codes sign(Codes v, int shift) {
    Codes moved = shift < 1 ? _mm512_slli_epi16(v, 1) : _mm512_srli_epi16(v, (unsigned)(shift - 1));
    return _mm512_and_si512(moved, _mm512_set1_epi8(2));
}
INLINE Codes look(Codes c, const uint8_t *book, int books) {
    Codes found = _mm512_shuffle_epi8(load(book), c);
    if (books == 4)
        for (int output = 1; output < 4; output++)
            found = _mm512_mask_shuffle_epi8(found, 0xFULL * 0x0001000100010001ULL << 4 * output,
                                             load(book + 64 * output), c);
    return found;
}
INLINE Ints dot(Ints a, Codes c, int32_t x) { return _mm512_dpbusd_epi32(a, c, _mm512_set1_epi32(x)); }
INLINE Ints ints(int32_t value) { return _mm512_set1_epi32(value); }
INLINE Ints minus_product(const uint8_t *zeros, int shift, int32_t sum) {
    Ints wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)zeros));
    return _mm512_mullo_epi32(_mm512_sub_epi32(ints(shift), wide), ints(sum));
}
INLINE Floats floats(float value) { return _mm512_set1_ps(value); }
INLINE Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
INLINE Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
INLINE Floats add_product(Floats sum, Floats a, Floats b) { return _mm512_fmadd_ps(a, b, sum); }
INLINE Floats halves(const uint16_t *from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from)); }
INLINE Floats load_floats(const float *from) { return _mm512_loadu_ps(from); }
INLINE void store_floats(float *to, Floats f, ptrdiff_t count) {
    if (count > 0) _mm512_mask_storeu_ps(to, count >= 16 ? 0xFFFF : (__mmask16)((1u << count) - 1), f);
}
INLINE Floats some_floats(const float *from, ptrdiff_t count) {
    if (count >= 16) return _mm512_loadu_ps(from);
    return count > 0 ? _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from) : _mm512_setzero_ps();
}
INLINE Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }
INLINE Floats over(Floats a, Floats b) { return _mm512_div_ps(a, b); }
INLINE Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
INLINE Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
INLINE Floats unless_below(Floats x, float limit, Floats value) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, floats(limit), _CMP_NLT_UQ), value);
}
INLINE Floats whole(Floats a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE Floats lifted(Floats a, Floats n) { return _mm512_scalef_ps(a, n); }
INLINE float total(Floats a) { return _mm512_reduce_add_ps(a); }
INLINE float greatest(Floats a) { return _mm512_reduce_max_ps(a); }
INLINE Floats brains(const uint16_t *from) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
#if BF16
INLINE void store_brains(uint16_t *to, Floats f) {
    const __m256bh made = _mm512_cvtneps_pbh(f);
    __builtin_memcpy(to, &made, 32);
}
INLINE Floats add_products(Floats sum, Floats v, Floats w) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(v), (__m512bh)_mm512_castps_si512(w));
}
#define PAIRED
INLINE Floats side_by_side(Floats a, Floats b) { return _mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(b, a)); }
INLINE Floats paired(Floats a, Floats b) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, _mm512_castps_si512(side_by_side(a, b))));
}
INLINE void spread_16(uint16_t *to, const uint16_t *from, uint32_t mask) {
    _mm512_storeu_si512(to, _mm512_maskz_expand_epi16(mask, _mm512_loadu_si512(from)));
}
#else
INLINE void store_brains(uint16_t *to, Floats f) {
    __m512i bits = _mm512_castps_si512(f), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}
INLINE Floats add_products(Floats sum, Floats v, Floats w) {
    const __m512i bits = _mm512_castps_si512(v), both = _mm512_castps_si512(w), upper = _mm512_set1_epi32((int)0xFFFF0000);
    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(both, 16)), sum);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(bits, upper)), _mm512_castsi512_ps(_mm512_and_si512(both, upper)), sum);
}
INLINE void spread_16(uint16_t *to, const uint16_t *from, uint32_t mask) {
    for (int half = 0; half < 2; half++, to += 16, mask >>= 16) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
        const __m512i placed = _mm512_maskz_expand_epi32((__mmask16)mask, wide);
        _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(placed));
        from += __builtin_popcount(mask & 0xFFFF);
    }
}
#endif
#define SPREADS
INLINE void spread_32(uint32_t *to, const uint32_t *from, uint32_t mask) {
    const __m512i low = _mm512_loadu_si512(from), high = _mm512_loadu_si512(from + __builtin_popcount(mask & 0xFFFF));
    _mm512_storeu_si512(to, _mm512_maskz_expand_epi32((__mmask16)mask, low));
    _mm512_storeu_si512(to + 16, _mm512_maskz_expand_epi32((__mmask16)(mask >> 16), high));
}
INLINE Floats some_brains(const uint16_t *from, ptrdiff_t count) {
    if (count >= 32) return _mm512_castsi512_ps(_mm512_loadu_si512(from));
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(count > 0 ? (1u << count) - 1 : 0, from));
}
INLINE Floats add_pairs(Floats sum, Floats v, uint32_t pair) {
    return add_products(sum, v, _mm512_castsi512_ps(_mm512_set1_epi32((int)pair)));
}
INLINE Floats first_of_pairs(Floats v) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0xFFFF)));
}

#define OFFSET(step) 128
INLINE Ints dot_signed(Ints a, Codes w, int32_t x) { return _mm512_dpbusd_epi32(a, _mm512_set1_epi32(x), w); }
INLINE Ints offset_by(const int32_t *sums, int offset) { return _mm512_mullo_epi32(_mm512_loadu_si512(sums), ints(-offset)); }
INLINE void store_ints(int32_t *to, Ints a) { _mm512_storeu_si512(to, a); }
INLINE Ints magnitude(Floats x) { return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF)); }
INLINE Ints higher(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
INLINE void store_bytes(char *to, Floats f, int offset) {
    const __m512i moved = _mm512_add_epi32(_mm512_cvtps_epi32(f), ints(offset));
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(moved));
}

#define ABREAST 4
#define ACROSS 8
#define ALONG 8

#include "tile.h"
#include "rows.h"
#include "dense.h"
#include "maps.h"

TARGET static uint32_t largest(const float *x, ptrdiff_t count) {
    Ints top = ints(0);
    EACH_16(j, count) top = higher(top, magnitude(some_floats(x + j, count - j)));
    return (uint32_t)_mm512_reduce_max_epi32(top);
}

/* 64 numbers at a time: packing leaves those of a quarter side by side, and each vector's are put together again. */
TARGET static int32_t round_block(const float *x, ptrdiff_t count, ptrdiff_t block, float factor, int8_t *q) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    Ints sum = ints(0);
    for (ptrdiff_t j = 0; j < block; j += 64) {
        Ints four[4];
        UNROLL for (int v = 0; v < 4; v++)
            four[v] = _mm512_cvtps_epi32(times(some_floats(x + j + v * 16, count - j - v * 16), floats(factor)));
        const Ints low = _mm512_packs_epi32(four[0], four[1]), high = _mm512_packs_epi32(four[2], four[3]);
        const Ints bytes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), bytes);
        _mm512_mask_storeu_epi8(q + j, block - j < 64 ? (1ULL << (block - j)) - 1 : ~0ULL, bytes);
    }
    return _mm512_reduce_add_epi32(sum);
}

#define TRANSPOSES
INLINE Floats quarters(Floats a, Floats b, int odd) {
    return odd ? _mm512_shuffle_f32x4(a, b, 0xDD) : _mm512_shuffle_f32x4(a, b, 0x88);
}
INLINE void transpose(Floats *square) {
    __m512d pairs[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_castps_pd(_mm512_unpacklo_ps(square[i], square[i + 1]));
        pairs[i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(square[i], square[i + 1]));
    }
    Floats fours[16]; /* quarter l of number 4 i + j: column 4 l + j of rows 4 i and the three behind */
    UNROLL for (int i = 0; i < 16; i++) {
        const __m512d *at = pairs + i / 4 * 4 + i % 4 / 2;
        fours[i] = _mm512_castpd_ps(i % 2 ? _mm512_unpackhi_pd(at[0], at[2]) : _mm512_unpacklo_pd(at[0], at[2]));
    }
    UNROLL for (int j = 0; j < 4; j++)
        UNROLL for (int odd = 0; odd < 2; odd++) {
            const Floats low = quarters(fours[j], fours[4 + j], odd), high = quarters(fours[8 + j], fours[12 + j], odd);
            square[4 * odd + j] = quarters(low, high, 0);
            square[8 + 4 * odd + j] = quarters(low, high, 1);
        }
}

#include "attend.h"
#include "whole.h"

const Kernel KERNEL = {multiply, largest, round_block, make, narrow, dense, turn, keep,
                       attend, unite, attend_whole, bound, likely, say, image};
#endif
