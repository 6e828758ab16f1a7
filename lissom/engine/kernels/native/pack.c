/* Codes as they are stored, a stream of bits for each row, become panels. */
#include <stdlib.h>
#include <string.h>

#include "linear.h"
#include "native.h"
#include "pool.h"

typedef struct {
    const uint8_t *rows; /* [outputs][row_bytes], little-endian streams of `bits` bits a code */
    ptrdiff_t outputs, row_bytes;
    Layout layout;
    int bits, to_bits; /* as stored, and in panels */
    uint8_t *panels;
    uint8_t *room;     /* of each thread: codes of LANES rows, spread to `width` inputs, and of one as stored */
    ptrdiff_t width, room_bytes;
} Packing;

static void read_codes(const Packing *p, const uint8_t *from, uint8_t *to) {
    const ptrdiff_t inputs = p->layout.inputs;
    if (p->bits == 8) {
        memcpy(to, from, (size_t)inputs);
    } else if (p->bits == 4) {
        for (ptrdiff_t j = 0; j < inputs / 2; j++) to[2 * j] = from[j] & 15, to[2 * j + 1] = from[j] >> 4;
        if (inputs % 2) to[inputs - 1] = from[inputs / 2] & 15;
    } else {
        const unsigned mask = (1u << p->bits) - 1;
        for (ptrdiff_t j = 0; j < inputs; j++) {
            const ptrdiff_t at = j * p->bits, byte = at / 8;
            const unsigned pair = from[byte] | (unsigned)(byte + 1 < p->row_bytes ? from[byte + 1] : 0) << 8;
            to[j] = (uint8_t)(pair >> at % 8 & mask);
        }
    }
}

/* `fields` groups of 4 codes, the first in the lowest bits, for 16 outputs. */
static void fold(const uint8_t *codes, ptrdiff_t width, int fields, int bits, int shift, uint8_t *to) {
    const uint32_t mask = ((1u << bits) - 1) * 0x01010101u;
    for (ptrdiff_t lane = 0; lane < 16; lane++) {
        uint32_t all = 0;
        for (int f = 0; f < fields; f++) {
            uint32_t four;
            memcpy(&four, codes + lane * width + 4 * f, 4);
            all |= (four >> shift & mask) << f * bits;
        }
        memcpy(to + 4 * lane, &all, 4);
    }
}

/* One plane of bits of a chunk: vectors of 64 bytes, the outputs of the panel's first half before those of its second. */
static uint8_t *plane(const uint8_t *codes, ptrdiff_t width, int bits, int shift, uint8_t *to) {
    const int fields = 8 / bits;
    for (int part = 0; part < CHUNK / 4; part += fields)
        for (int half = 0; half < 2; half++, to += 64) fold(codes + half * 16 * width + 4 * part, width, fields, bits, shift, to);
    return to;
}

/* A word of a stream of codes, as it stands in panels: bytes of codes that are 4 apart, in place of neighbours. */
static uint32_t dealt(uint32_t word, int bits) {
    uint32_t moved;
    if (bits == 4) {
        moved = (word ^ word >> 8) & 0xFF00, word ^= moved ^ moved << 8;
        moved = (word ^ word >> 4) & 0xF000F0, word ^= moved ^ moved << 4;
    } else if (bits == 2) {
        moved = (word ^ word >> 12) & 0xF0F0, word ^= moved ^ moved << 12;
        moved = (word ^ word >> 6) & 0xCC00CC, word ^= moved ^ moved << 6;
    }
    return word;
}

/* A panel whose rows are whole chunks, of codes of 2, 4 or 8 bits, a word of them at a time. */
static void deal(const Packing *p, ptrdiff_t panel, uint8_t *to) {
    const ptrdiff_t words = p->width * p->bits / 32, left = p->outputs - panel * LANES, lanes = left < LANES ? left : LANES;
    if (lanes < LANES) memset(to, 0, (size_t)(words * 4 * LANES));
    for (ptrdiff_t lane = 0; lane < lanes; lane++) {
        const uint8_t *row = p->rows + (panel * LANES + lane) * p->row_bytes;
        for (ptrdiff_t w = 0; w < words; w++) {
            uint32_t word;
            memcpy(&word, row + 4 * w, 4);
            word = dealt(word, p->bits);
            memcpy(to + (w * LANES + lane) * 4, &word, 4);
        }
    }
}

static void pack_panels(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    const Packing *p = given;
    const Layout *l = &p->layout;
    uint8_t *codes = p->room + thread * p->room_bytes, *row = codes + LANES * p->width;
    const int whole = p->width == l->inputs && p->bits == p->to_bits && p->bits != 1 && p->bits != 3;
    for (ptrdiff_t panel = first; panel < last; panel++) {
        uint8_t *to = p->panels + panel * (p->width / CHUNK) * (p->to_bits * LANES * CHUNK / 8);
        if (whole) {
            deal(p, panel, to);
            continue;
        }
        memset(codes, 0, (size_t)(LANES * p->width));
        for (ptrdiff_t lane = 0; lane < LANES && panel * LANES + lane < p->outputs; lane++) {
            read_codes(p, p->rows + (panel * LANES + lane) * p->row_bytes, row);
            for (ptrdiff_t at = 0, j = 0; j < l->inputs; j += l->group, at += l->wide)
                memcpy(codes + lane * p->width + at, row + j, (size_t)l->group);
        }
        for (ptrdiff_t k = 0; k < p->width; k += CHUNK) {
            to = plane(codes + k, p->width, p->to_bits == 3 ? 2 : p->to_bits, 0, to);
            if (p->to_bits == 3) to = plane(codes + k, p->width, 1, 2, to);
        }
    }
}

/* Rows of codes become panels of `to_bits` bits; 0, or -1 where memory is short. */
EXPORT int lissom_pack(const uint8_t *rows, ptrdiff_t outputs, ptrdiff_t row_bytes, int bits, const Layout *layout, int to_bits,
                       uint8_t *panels, int threads) {
    Packing p = {.rows = rows, .outputs = outputs, .row_bytes = row_bytes, .layout = *layout, .bits = bits,
                 .to_bits = to_bits, .panels = panels, .width = layout->inputs / layout->group * layout->wide};
    p.room_bytes = LANES * p.width + layout->inputs + 64;
    p.room = malloc((size_t)(p.room_bytes * threads));
    if (!p.room) return -1;
    const ptrdiff_t count = (outputs + LANES - 1) / LANES;
    lissom_each(pack_panels, &p, count, lissom_chunk(count, LANES * p.width * 8, threads), threads);
    free(p.room);
    return 0;
}
