/* What is done to rows of floats, written once for all instruction sets (tile.h says what these define). */
#include <math.h>

#define EACH_16(j, count) for (ptrdiff_t j = 0; j < (count); j += 16)

#define LOG2_E 1.44269504f

/* 2^x = 2^n 2^r with n whole and |r| <= 1/2, 2^r by the polynomial of degree 5 that is 1 at 0 and has the least relative
   error, 9.2e-8; 0, or less than 2^-126, below -126. NaN stays NaN. */
INLINE Floats power_of_two(Floats x) {
    Floats inside = larger(floats(-200), x), n = whole(inside), r = add_product(inside, n, floats(-1));
    Floats p = floats(0.00132647273f);
    const float rest[] = {0.00967151299f, 0.0555073358f, 0.240222424f, 0.693147004f, 1};
    UNROLL for (int i = 0; i < 5; i++) p = add_product(floats(rest[i]), p, r);
    return lifted(p, n);
}

INLINE Floats exponential(Floats x) { return power_of_two(times(x, floats(LOG2_E))); }

INLINE Floats sigmoid(Floats x) {
    Floats below = exponential(times(larger(floats(-87), x), floats(-1)));
    return over(floats(1), plus(floats(1), below));
}

/* x (1/2 + x q(x^2)), what is in brackets the normal distribution within 3.5e-7 up to 5.2 and 0 or 1 beyond: q is a polynomial
   of degree 13, in s that x^2 from 0 up to 5.2^2 takes from -1 to 1. */
INLINE Floats gelu(Floats x) {
    const Floats s = add_product(floats(-1), smaller(floats(27.04f), times(x, x)), floats(2 / 27.04f));
    const float rest[] = {0.00118868984f,  -0.001468751f, 0.0020051701f,  -0.0045423354f, 0.00836510491f, -0.01261965f, 0.0180387683f,
                          -0.0246988423f,  0.031973917f,  -0.0399319865f, 0.0500256158f,  -0.0677436218f, 0.135949984f};
    Floats q = floats(-0.000388243585f);
    UNROLL for (int i = 0; i < 13; i++) q = add_product(floats(rest[i]), q, s);
    return times(x, smaller(floats(1), larger(floats(0), add_product(floats(0.5f), x, q))));
}

INLINE Floats upto_6(Floats x) { return smaller(floats(6), larger(floats(0), x)); }

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

INLINE Floats tanh_of(Floats x) { return within(x, 1); }

/* Gates lie side by side, those made of the input and those made of what was said before. */
INLINE void say_as(int kind, const float *gates, const float *heard, const float *before, float *cell, float *said, ptrdiff_t size) {
    EACH_16(j, size) {
        const ptrdiff_t left = size - j;
        Floats made[4], own[4], all[4], now;
        UNROLL for (int g = 0; g < (kind == LSTM ? 4 : kind == GRU ? 3 : 1); g++) {
            made[g] = some_floats(gates + g * size + j, left);
            own[g] = some_floats(heard + g * size + j, left);
            all[g] = plus(made[g], own[g]);
        }
        if (kind == LSTM) {
            const Floats kept = add_product(times(sigmoid(all[1]), some_floats(cell + j, left)), sigmoid(all[0]), tanh_of(all[2]));
            store_floats(cell + j, kept, left);
            now = times(sigmoid(all[3]), tanh_of(kept));
        } else if (kind == GRU) {
            const Floats new = tanh_of(add_product(made[2], sigmoid(all[0]), own[2]));
            now = add_product(new, sigmoid(all[1]), plus(some_floats(before + j, left), times(new, floats(-1))));
        } else now = kind == TANH ? tanh_of(all[0]) : larger(floats(0), all[0]);
        store_floats(said + j, now, left);
    }
}

TARGET static void say(int kind, const float *gates, const float *heard, const float *before, float *cell, float *said, ptrdiff_t size) {
    if (kind == LSTM) say_as(LSTM, gates, heard, before, cell, said, size);
    else if (kind == GRU) say_as(GRU, gates, heard, before, cell, said, size);
    else say_as(kind, gates, heard, before, cell, said, size);
}

TARGET static void bound(float *x, ptrdiff_t count, float cap) {
    EACH_16(j, count) store_floats(x + j, within(some_floats(x + j, count - j), cap), count - j);
}

INLINE Floats likelihoods(const float *x, float best, float by) {
    return exponential(times(plus(load_floats(x), floats(-best)), floats(by)));
}

TARGET static float likely(const float *x, ptrdiff_t count, float best, float by) {
    const ptrdiff_t even = count / 16 * 16;
    float last[16];
    for (ptrdiff_t j = 0; j < 16; j++) last[j] = even + j < count ? x[even + j] : -INFINITY;
    Floats sum = likelihoods(last, best, by);
    EACH_16(j, even) sum = plus(sum, likelihoods(x + j, best, by));
    return total(sum);
}
