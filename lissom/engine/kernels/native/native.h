/* What the files of the library share. */
#ifndef LISSOM_NATIVE_H
#define LISSOM_NATIVE_H

#include "step.h"

#define EXPORT __attribute__((visibility("default")))

const Kernel *lissom_kernel(int number);

/* A half float. */
static inline float lissom_half(uint16_t bits) {
    union { uint32_t bits; float value; } wide = {.bits = (uint32_t)(bits & 0x7FFF) << 13};
    wide.value *= 0x1p112f; /* the exponents' difference; right for subnormal numbers too */
    wide.bits |= (uint32_t)(bits & 0x8000) << 16;
    return wide.value;
}

#endif
