/* The arithmetic of the engine: one table of functions for each instruction set, compiled from engine_isa.h.
 *
 * Letters: V vocabulary, E embedding, H hidden, G gates, K columns of a matrix. A group is 16 rows of a matrix; a block
 * is the rows that one product call computes: the G gates of 16 units, or up to 64 rows of the projection.
 */
#ifndef CHARLSTM_ENGINE_KERNELS_H
#define CHARLSTM_ENGINE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define GROUP          16          /* rows per group: a register of AVX-512 */
#define Z_STRIDE       (4 * GROUP) /* sums of one block and sequence */
#define MOST_SEQUENCES 6           /* sequences per tile: with 4 gates, 24 sums in registers */

/* engine_isa.h describes each function. */
typedef struct {
    void (*product32)(const float *w, const float *x, size_t x_stride, int K, float *z, int sequences, int R);
    void (*product8)(const int8_t *w, const float *scale, const int32_t *offset, const uint8_t *x, size_t x_stride,
                     int K, float *z, int sequences, int R);
    void (*quantise)(const float *h, int n, uint8_t *q);
    void (*cells)(int cell, int sequences, const float *z, const float *peephole, const float *old, float *c, float *h,
                  uint8_t *q, size_t stride);
    float (*largest)(const float *logits, int n);
    double (*mass)(const float *logits, int n, float largest);
    double (*softmax)(const float *logits, int n, float largest, double temperature, double *weights);
} kernels;

typedef struct {
    const char *name;
    int (*is_present)(void); /* whether this processor has the set */
    int has_int8;            /* whether its int8 products are faster than its fp32 ones */
    const kernels *kernels;
} instruction_set;

/* The instruction sets that the compiler could produce, best first; the last one runs on every processor. */
extern const instruction_set instruction_sets[];
extern const int instruction_set_count;

#endif
