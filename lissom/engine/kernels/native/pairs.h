/* A chunk of a panel for AVX2, and a stretch of patches, whose products of bytes are summed by two in 16 bits.

   Eight sums of two products of codes below 16 fit into 16 bits, so small codes are widened once a chunk. Larger ones are
   taken less SHIFT, as signed bytes: 2 * 128 * 127 fits, where two products with codes up to 255 would not. A half of the
   panel is done by itself, for then twice as many rows fit into the registers. */

/* Sums one after the other: compilers would turn them into trees, whose leaves do not fit into the registers. */
#define IN_TURN(sum) __asm__("" : "+x"(sum))

INLINE __m256i widened(__m256i a, __m256i pairs) {
    return _mm256_add_epi32(a, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* Codes below 16. */
INLINE void small_codes(int rows, int bits, const uint8_t *codes, const int8_t *x, ptrdiff_t width, int h, Ints a[][HALVES]) {
    Ints pairs[PANEL_ROWS];
    UNROLL for (int m = 0; m < rows; m++) pairs[m] = ints(0);
    UNROLL for (int part = 0; part < CHUNK / 4; part++) {
        const Codes c = codes_at(codes, bits, part, h);
        UNROLL for (int m = 0; m < rows; m++) {
            const __m256i all = _mm256_set1_epi32(four(x + m * width + part * 4));
            pairs[m].low = _mm256_add_epi16(pairs[m].low, _mm256_maddubs_epi16(c.low, all));
            pairs[m].high = _mm256_add_epi16(pairs[m].high, _mm256_maddubs_epi16(c.high, all));
            IN_TURN(pairs[m].low);
            IN_TURN(pairs[m].high);
        }
    }
    UNROLL for (int m = 0; m < rows; m++)
        a[m][h] = (Ints){widened(a[m][h].low, pairs[m].low), widened(a[m][h].high, pairs[m].high)};
}

/* Signed bytes w with their magnitudes. */
INLINE __m256i signed_dot(__m256i a, __m256i w, __m256i sizes, __m256i x) {
    return widened(a, _mm256_maddubs_epi16(sizes, _mm256_sign_epi8(x, w)));
}

INLINE void chunk(int rows, int bits, int books, const uint8_t *codes, const uint8_t *book, const int8_t *x, ptrdiff_t width,
                  Ints a[][HALVES]) {
    UNROLL for (int h = 0; h < HALVES; h++) {
        if (bits < 8 && !books) {
            small_codes(rows, bits, codes, x, width, h, a);
            continue;
        }
        UNROLL for (int part = 0; part < CHUNK / 4; part++) {
            Codes c = values_at(codes, bits, books, book, part, h);
            c.low = _mm256_xor_si256(c.low, _mm256_set1_epi8((char)SHIFT));
            c.high = _mm256_xor_si256(c.high, _mm256_set1_epi8((char)SHIFT));
            const Codes sizes = {_mm256_abs_epi8(c.low), _mm256_abs_epi8(c.high)};
            UNROLL for (int m = 0; m < rows; m++) {
                const __m256i all = _mm256_set1_epi32(four(x + m * width + part * 4));
                a[m][h].low = signed_dot(a[m][h].low, c.low, sizes.low, all);
                a[m][h].high = signed_dot(a[m][h].high, c.high, sizes.high, all);
                IN_TURN(a[m][h].low);
                IN_TURN(a[m][h].high);
            }
        }
    }
}

/* A stretch of `tall` patches: unsigned inputs times signed weights, `deep` sums of two products before they are widened.
   Returns where the weights of the next one lie. */
INLINE const uint8_t *pairs_of_stretch(int tall, int halves, ptrdiff_t deep, const char *const *x, const Stretch *stretch,
                                       const uint8_t *w, Ints a[][2]) {
    const ptrdiff_t end = stretch->from + stretch->count * ENTRY;
    for (ptrdiff_t i = stretch->from; i < end;) {
        const ptrdiff_t stop = deep == 1 ? i + ENTRY : least(end, i + deep * ENTRY);
        Ints pairs[ALONG][2];
        UNROLL for (int m = 0; m < tall; m++)
            UNROLL for (int h = 0; h < halves; h++) pairs[m][h] = ints(0);
        do {
            UNROLL for (int h = 0; h < halves; h++) {
                const Codes c = load(w + h * 64);
                UNROLL for (int m = 0; m < tall; m++) {
                    const __m256i all = _mm256_set1_epi32(four((const int8_t *)x[m] + i));
                    pairs[m][h].low = _mm256_add_epi16(pairs[m][h].low, _mm256_maddubs_epi16(all, c.low));
                    pairs[m][h].high = _mm256_add_epi16(pairs[m][h].high, _mm256_maddubs_epi16(all, c.high));
                }
            }
            i += ENTRY;
            w += halves * 64;
        } while (deep > 1 && i < stop);
        UNROLL for (int m = 0; m < tall; m++)
            UNROLL for (int h = 0; h < halves; h++)
                a[m][h] = (Ints){widened(a[m][h].low, pairs[m][h].low), widened(a[m][h].high, pairs[m][h].high)};
    }
    return w;
}
