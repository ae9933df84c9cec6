/* Training kernels: a layer over a whole sequence, forward and backward, and the matrix products around it.
 *
 * Every function divides its loop into `threads` parts of the batch (or of the product), and no part waits for another.
 * The parts run in the thread pool whose GOMP_parallel the caller passes. This should be torch's own pool, because a
 * second pool would compete with it for the processors. If `pool` is NULL, they run in a pool of this library, which is
 * created at the first call and kept.
 *
 * `variant` is an instruction set, counted from the plainest. `element` is the type of the numbers: in BF16 all arrays
 * are of float, and the operands of every product, but nothing else, are rounded to bf16 (8 significant bits, the range
 * of float); the products are summed in float. Instruction sets without bf16 compute the same in float on the rounded
 * numbers, in another order of the sums.
 *
 * Letters: B batch, T time, V vocabulary, H hidden, G gates. Arrays are row-major.
 */
#ifndef CHARLSTM_RECURRENCE_H
#define CHARLSTM_RECURRENCE_H

#include "core.h"

#include <stdint.h>

enum element { FLOAT, DOUBLE, BF16 };

/* C (M, N) = A (M, K) · B (K, N), or C += A · B. Element (i, k) of A is a[i * a_row + k * a_col]; B likewise; element
 * (i, j) of C is c[i * c_row + j]. */
typedef struct {
    const void *a, *b;
    void *c, *scratch; /* recurrence_product_scratch() elements for each thread */
    int64_t M, N, K, a_row, a_col, b_row, b_col, c_row;
    int64_t accumulate, threads;
} product_task;

/* One layer over T steps. The backward pass reads the results of the forward pass, and overwrites `gates` and
 * `candidate`. */
typedef struct {
    int64_t cell, threads, T, B, H;
    const void *source;   /* (V or T·B, G·H) the input's part of the gates: x · weight_ih.T, without bias */
    const int64_t *index; /* (T, B) the row of `source` for each step, or NULL: the rows are in order */
    const uint8_t *fresh; /* (T, B) 1: this step begins with the zero state; NULL: no step does */
    const void *weight;   /* (G·H, H) weight_hh */
    const void *bias; /* (G·H) both biases; GRU (4·H): r, z with both, n with the hidden one, n with the input one */
    const void *peephole; /* (3, H) or NULL */
    void *h, *c;          /* (T + 1, B, H) the first is given, the others are written; c is NULL if the cell has no c */
    void *h_begin, *c_begin; /* (T, B, H) state before each step: the same memory as h and c if `fresh` is NULL */
    void *gates;          /* (T, B, G·H) after σ and tanh; backward turns them into the gradient before σ and tanh */
    void *candidate;      /* (T, B, H) GRU: weight_hn · h + b_hn; backward: gradient of the n block's input part */
    void *packed;         /* recurrence_scan_scratch() elements */
    const void *d_output; /* (T, B, H) gradient of h[1:] */
    void *d_h, *d_c;      /* (B, H) in: gradient of the last state; out: of the first */
    void *d_bias;         /* (threads, size of bias) zeroed by the caller; its sum over threads is the gradient */
    void *d_peephole;     /* (threads, 3, H) likewise, or NULL without `peephole` */
    void *d_source;       /* (V, G·H) likewise zeroed; only if `index` is given */
} scan_task;

/* y = x with each number dropped with probability `share`, the others scaled by 1 / (1 − share). The same keys drop the
 * same elements, forward and backward.
 *
 * x may be a part of a larger array, of which it has `row` adjacent elements in each row of `stride` elements, from
 * element `first` on: then the same elements are dropped as if the whole array was given. */
typedef struct {
    const void *x;
    void *y;
    int64_t n, threads, row, stride, first;
    double share;
    uint32_t key, second_key;
} drop_task;

/* GOMP_parallel of libgomp: call the function with the argument in each of `threads` threads. */
typedef void gomp_parallel(void (*function)(void *), void *argument, unsigned threads, unsigned flags);

/* The number of instruction sets that this library was built for and this processor has; variant 0 is the plainest. */
EXPORT int recurrence_variants(void);
EXPORT const char *recurrence_variant_name(int variant);

/* Whether this set has instructions for bf16, so that BF16 is faster than FLOAT. */
EXPORT int recurrence_has_bf16(int variant);

/* Elements of scratch for each thread of a product. */
EXPORT int64_t recurrence_product_scratch(void);
/* Elements of scratch for a scan: the recurrent matrix in tiles, the last of which is padded with zeros, and in BF16 the
 * rounded rows of one step. */
EXPORT int64_t recurrence_scan_scratch(int variant, enum element element, int64_t cell, int64_t B, int64_t H);

EXPORT void recurrence_product(const product_task *task, int variant, enum element element, gomp_parallel *pool);
EXPORT void recurrence_forward(const scan_task *task, int variant, enum element element, gomp_parallel *pool);
EXPORT void recurrence_backward(const scan_task *task, int variant, enum element element, gomp_parallel *pool);
EXPORT void recurrence_drop(const drop_task *task, int variant, enum element element, gomp_parallel *pool);

#endif
