/* What the files of the library share. */
#ifndef LISSOM_NATIVE_H
#define LISSOM_NATIVE_H

#include "pool.h"
#include "step.h"

static const float TINY = 1e-36f; /* inputs that are smaller count as 0: the inverse would be infinite */

const Kernel *lissom_kernel(int number);

/* A half float. */
static inline float lissom_half(uint16_t bits) {
    union { uint32_t bits; float value; } wide = {.bits = (uint32_t)(bits & 0x7FFF) << 13};
    wide.value *= 0x1p112f; /* the exponents' difference; right for subnormal numbers too */
    wide.bits |= (uint32_t)(bits & 0x8000) << 16;
    return wide.value;
}

#endif
