/* What is done to rows of floats, written once for all instruction sets (tile.h says what these define). */
#include <math.h>

#define EACH_16(j, count) for (ptrdiff_t j = 0; j < (count); j += 16)

#define LOG2_E 1.44269504f

/* 2^x = 2^n 2^r with n whole and |r| <= 1/2, 2^r by the polynomial of degree 5 that is 1 at 0 and has the least relative
   error, 9.2e-8; 0 below -126. NaN stays NaN. */
INLINE Floats power_of_two(Floats x) {
    Floats inside = larger(floats(-126), x), n = whole(inside), r = add_product(inside, n, floats(-1));
    Floats p = floats(0.00132647273f);
    const float rest[] = {0.00967151299f, 0.0555073358f, 0.240222424f, 0.693147004f, 1};
    UNROLL for (int i = 0; i < 5; i++) p = add_product(floats(rest[i]), p, r);
    return unless_below(x, -126, lifted(p, n));
}

INLINE Floats exponential(Floats x) { return power_of_two(times(x, floats(LOG2_E))); }

INLINE Floats sigmoid(Floats x) {
    Floats below = exponential(times(larger(floats(-87), x), floats(-1)));
    return over(floats(1), plus(floats(1), below));
}

/* x / 2 (1 + erf(x / sqrt(2))); erf, which is 1 beyond 4, as a quotient of polynomials that is within 5e-7 of it. */
INLINE Floats gelu(Floats x) {
    Floats above_low = larger(floats(-4), times(x, floats(0.70710678f)));
    Floats z = times(larger(floats(-4), times(above_low, floats(-1))), floats(-1));
    Floats square = times(z, z), upper = floats(-2.72614225801306e-10f), lower = floats(-1.45660718464996e-5f);
    const float above[] = {2.77068142495902e-8f,  -2.10102402082508e-6f, -5.69250639462346e-5f,
                           -7.34990630326855e-4f, -2.95459980854025e-3f, -1.60960333262415e-2f};
    const float below[] = {-2.13374055278905e-4f, -1.68282697438203e-3f, -7.37332916720468e-3f, -1.42647390514189e-2f};
    UNROLL for (int i = 0; i < 6; i++) upper = add_product(floats(above[i]), upper, square);
    UNROLL for (int i = 0; i < 4; i++) lower = add_product(floats(below[i]), lower, square);
    Floats half = times(x, floats(0.5f));
    return add_product(half, half, over(times(z, upper), lower));
}

/* x from 0 up to 6 */
INLINE Floats upto_6(Floats x) { return times(larger(floats(-6), times(larger(floats(0), x), floats(-1))), floats(-1)); }

/* x / (1 + e^-x); GELU by its tanh form is the same with another argument (Hendrycks and Gimpel 2016, arXiv:1606.08415). */
INLINE Floats gated(int shape, Floats x) {
    if (shape == NONE) return x;
    if (shape == RELU) return larger(floats(0), x);
    if (shape == RELU6) return upto_6(x);
    if (shape == HARD_SWISH) return times(x, times(upto_6(plus(x, floats(3))), floats(1.0f / 6)));
    if (shape == SILU) return times(x, sigmoid(x));
    if (shape == GELU) return gelu(x);
    Floats cube = times(times(x, x), x);
    return times(x, sigmoid(times(floats(1.59576912f), add_product(x, floats(0.044715f), cube))));
}

/* 1 / sqrt(mean of x^2 + eps) */
INLINE float inverse_norm(const float *x, ptrdiff_t count, float eps) {
    Floats squares = floats(0);
    EACH_16(j, count) {
        Floats v = some_floats(x + j, count - j);
        squares = add_product(squares, v, v);
    }
    return 1 / sqrtf(total(squares) / (float)count + eps);
}

/* x less its mean */
INLINE void centre(const float *x, ptrdiff_t count, float *to) {
    Floats sum = floats(0);
    EACH_16(j, count) sum = plus(sum, some_floats(x + j, count - j));
    const Floats less = floats(-total(sum) / (float)count);
    EACH_16(j, count) store_floats(to + j, plus(some_floats(x + j, count - j), less), count - j);
}

TARGET static void make(const Source *s, ptrdiff_t row, float *to) {
    const float *from = s->from.at + row * s->from.stride, *gate = s->gate.at + row * s->gate.stride;
    const int normed = s->kind == NORMED || s->kind == CENTRED;
    if (s->kind == CENTRED) {
        centre(from, s->width, to);
        from = to;
    }
    const float factor = normed ? inverse_norm(from, s->width, s->eps) : 1;
    EACH_16(j, s->width) {
        Floats x = some_floats(from + j, s->width - j);
        if (normed) x = times(x, floats(factor));
        if (normed || s->kind == SCALED) x = times(x, some_floats(s->weight + j, s->width - j));
        if (s->bias) x = plus(x, some_floats(s->bias + j, s->width - j));
        if (s->kind == GATED) x = times(x, gated(s->shape, some_floats(gate + j, s->width - j)));
        if (s->kind == ACTIVE) x = gated(s->shape, x);
        store_floats(to + j, x, s->width - j);
    }
}

TARGET static void narrow(const float *x, ptrdiff_t count, uint16_t *to) {
    EACH_16(j, count) {
        uint16_t made[16];
        const ptrdiff_t left = count - j;
        store_brains(left < 16 ? made : to + j, some_floats(x + j, left));
        if (left < 16) memcpy(to + j, made, sizeof(uint16_t) * (size_t)left);
    }
}

TARGET static void turn(const Attention *a, const float *norm, ptrdiff_t row, float *head) {
    if (norm) {
        const float factor = inverse_norm(head, a->size, a->eps);
        EACH_16(j, a->size) {
            Floats x = times(some_floats(head + j, a->size - j), floats(factor));
            store_floats(head + j, times(x, some_floats(norm + j, a->size - j)), a->size - j);
        }
    }
    if (!a->rotary) return;
    const ptrdiff_t half = a->rotary->half;
    const float *cosine = a->rotary->cosine + row * half, *sine = a->rotary->sine + row * half;
    EACH_16(j, half) {
        const ptrdiff_t left = half - j;
        Floats x = some_floats(head + j, left), y = some_floats(head + half + j, left);
        Floats c = some_floats(cosine + j, left), s = some_floats(sine + j, left);
        store_floats(head + j, add_product(times(x, c), times(y, s), floats(-1)), left);
        store_floats(head + half + j, add_product(times(y, c), x, s), left);
    }
}

/* cap (2 / (1 + e^(-2 x / cap)) - 1) */
INLINE Floats within(Floats x, float cap) {
    Floats twice = times(sigmoid(times(x, floats(2 / cap))), floats(2 * cap));
    return plus(twice, floats(-cap));
}

TARGET static void bound(float *x, ptrdiff_t count, float cap) {
    EACH_16(j, count) store_floats(x + j, within(some_floats(x + j, count - j), cap), count - j);
}
