/* Definitions that the files of the engine share: the handle and the matrices in it.
 *
 * Letters: V vocabulary, E embedding, H hidden, G gates, K columns of a matrix. A group is 16 rows of a matrix; a block
 * is the rows that one product call computes: the G gates of 16 units, or up to 64 rows of the projection.
 */
#ifndef CHARLSTM_ENGINE_INTERNAL_H
#define CHARLSTM_ENGINE_INTERNAL_H

#include "engine.h"
#include "engine_kernels.h"
#include "threads.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define BATCH_TILE   24 /* sequences whose sums are kept at the same time: 6 kB of stack */
#define MOST_LAYERS  64
#define MOST_THREADS 64

/* A matrix in blocks of R groups of rows: fp32 [block][R][K][16], or int8 [block][R][K/4][16][4] with one scale per
 * row. */
typedef struct {
    void *w;
    float *scale;    /* of each row, times 1/127 for the activation; int8 only */
    int32_t *offset; /* 128·Σw of each row: the part of its sum that comes from the activations' offset; int8 only */
    int blocks, K, R, last_R;
} matrix;

typedef struct {
    matrix input, hidden; /* input.w is NULL if the table replaces it */
    float *bias;          /* [block][Z_STRIDE] */
    float *peephole;      /* [block][3][16] */
    float *h[2], *c;      /* (batch, width): old and new h, which swap at each step */
    uint8_t *q[2];        /* h in 8 bits */
} layer;

typedef struct {
    enum { READ, SCORE, GENERATE } kind;
    int batch, length, threads;
    int begin, end; /* the slice of the `length` steps that is being computed */
    const int32_t *ids;
    float *logits;
    double *nats;
    int top; /* number of most probable symbols to find at each position */
    int32_t *best;
    double *shares;
    engine_rule rule;
    int filters; /* whether the rule excludes symbols by their probability */
    uint64_t seed, position;
    const uint64_t *streams;
    int32_t *symbols;
} job;

/* A symbol that the filters have not excluded. */
typedef struct {
    double key; /* candidates are ranked by it */
    double weight;
    int32_t symbol;
} candidate;

/* Measurements of one number of threads, see choose_threads. */
typedef struct {
    double step;  /* seconds per step; 0: not measured yet */
    double again; /* time of the next trial, in seconds of the monotonic clock */
} pace;

struct engine {
    void *memory; /* returned by calloc; the handle begins at its first cache line */
    engine_options options;
    const kernels *kernels;
    int gates, states; /* of the cell */
    int width, padded; /* H and V, rounded up to groups */
    size_t step_bytes; /* bytes of weights that one step reads */
    float *embedding;  /* (V, E); NULL if there is a table */
    float *table;      /* [V][block][Z_STRIDE]: the first layer's input product and bias for each symbol */
    matrix projection;
    float *projection_bias; /* (padded), −∞ beyond V, so that no such symbol is sampled */
    float *logits;          /* (batch, padded) */
    float *adjusted;        /* (threads, padded): penalised logits, with −∞ for excluded symbols */
    candidate *candidates;  /* (threads, padded) */
    uint8_t *may;           /* (threads, padded + GROUP): which classes of symbols an automaton allows */
    int32_t *phases;        /* (batch): state of each sequence's automaton */
    double *
        weights; /* (batch or threads, padded): softmax of each sequence, or each thread's copy for a single sequence */
    layer layers[MOST_LAYERS];

    job job;
    atomic_int not_finite; /* logits of a sequence were NaN or infinite */
    pace pace[13][7];      /* [log2 batch][log2 threads] */
    thread_pool *pool;
    _Alignas(64) atomic_int claimed; /* sequences of the slice that threads have claimed */
};

/* The gates and states of a cell. A slot is the position of a gate in z, the sums that engine_isa.h reads. The slots
 * are in torch's order, except for the GRU, whose gate n has two sums: the slots are n, r, z of the input, and r, z, n
 * of the hidden state from slot 1 on. */
typedef struct {
    int gates, states;
    int input[4], hidden[4]; /* the gate of each slot */
} cell_layout;

/* ---- engine_weights.c ---- */

extern const cell_layout cell_layouts[];

/* Allocate a handle for checked options, with a copy of the weights but without a thread pool; NULL: no memory. */
engine *engine_allocate(const engine_options *options, int isa, const float *const *weights);

/* Size of one block in bytes. */
static inline size_t block_bytes(const matrix *m)
{
    return (size_t)m->R * GROUP * (m->scale ? (size_t)(m->K + 3) / 4 * 4 : (size_t)m->K * 4);
}

/* ---- engine_sampling.c ---- */

/* Whether a rule's fields are in range and allow at least one symbol for each of `batch` sequences. */
int is_rule(const engine *e, const engine_rule *rule, int batch);

/* Store the surprisal of the symbol after step t of a sequence in nats, NaN if the logits are not finite, and the most
 * probable symbols. No other thread may use row `thread` of the candidates. */
void score(engine *e, int sequence, int thread, int t);

/* Sample the symbol of a sequence at step t, with its automaton in state `phase`. No other thread may use row `row` of
 * the weights and row `thread` of the candidates. */
int32_t sample(engine *e, int sequence, int row, int thread, int t, int32_t phase);

/* The state of an automaton after the symbol of step t. */
int32_t phase_after(const engine *e, int32_t phase, int32_t symbol, int t);

static inline int in_range(int value, int low, int high) { return value >= low && value <= high; }

#endif
