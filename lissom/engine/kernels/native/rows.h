/* What is done to rows of floats, written once for all instruction sets (tile.h says what these define). */
#include <math.h>

#define EACH_16(j, count) for (ptrdiff_t j = 0; j < (count); j += 16)

/* e^x = 2^n e^r with n whole and |r| <= log(2) / 2, e^r by its series; 0 below -87. NaN stays NaN. */
INLINE Floats exponential(Floats x) {
    Floats inside = larger(floats(-87), x), n = whole(times(inside, floats(1.44269504f)));
    Floats r = add_product(add_product(inside, n, floats(-0.693359375f)), n, floats(2.12194440e-4f));
    Floats p = floats(1.0f / 720);
    const float series[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};
    UNROLL for (int i = 0; i < 6; i++) p = add_product(floats(series[i]), p, r);
    return unless_below(x, -87, lifted(p, n));
}

INLINE Floats sigmoid(Floats x) {
    Floats below = exponential(times(larger(floats(-87), x), floats(-1)));
    return over(floats(1), plus(floats(1), below));
}

/* x / (1 + e^-x); GELU by its tanh form is the same with another argument (Hendrycks and Gimpel 2016, arXiv:1606.08415). */
INLINE Floats gated(int shape, Floats x) {
    if (shape == RELU) return larger(floats(0), x);
    if (shape == SILU) return times(x, sigmoid(x));
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

TARGET static void make(const Source *s, ptrdiff_t row, float *to) {
    const float *from = s->from.at + row * s->from.stride, *gate = s->gate.at + row * s->gate.stride;
    const float factor = s->kind == NORMED ? inverse_norm(from, s->width, s->eps) : 1;
    EACH_16(j, s->width) {
        Floats x = some_floats(from + j, s->width - j);
        if (s->kind == NORMED) x = times(x, floats(factor));
        if (s->kind == NORMED || s->kind == SCALED) x = times(x, some_floats(s->weight + j, s->width - j));
        if (s->kind == GATED) x = times(x, gated(s->shape, some_floats(gate + j, s->width - j)));
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
