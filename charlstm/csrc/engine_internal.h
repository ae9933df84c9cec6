/* What the files of the engine share: the handle and the matrices in it.
 *
 * Letters: V vocabulary, E embedding, H hidden, G gates, K columns of a matrix. A group is 16 rows of a matrix; a block
 * is what one product call covers: the G gates of 16 units, or up to 64 rows of the projection.
 */
#ifndef CHARLSTM_ENGINE_INTERNAL_H
#define CHARLSTM_ENGINE_INTERNAL_H

#include "engine.h"
#include "engine_kernels.h"
#include "threads.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define BATCH_TILE   24 /* texts whose sums are kept at once: 6 kB of stack */
#define MOST_LAYERS  64
#define MOST_THREADS 64

/* A matrix in blocks of R groups of rows: fp32 [block][R][K][16], or int8 [block][R][K/4][16][4] with a scale a row. */
typedef struct {
    void *w;
    float *scale;    /* of a row, times 1/127 for the activation's; int8 only */
    int32_t *offset; /* 128·Σw of a row: what the activations' offset adds to its sum; int8 only */
    int blocks, K, R, last_R;
} matrix;

typedef struct {
    matrix input, hidden; /* input.w is NULL where the table stands for it */
    float *bias;          /* [block][Z_STRIDE] */
    float *peephole;      /* [block][3][16] */
    float *h[2], *c;      /* (batch, width): h in turn old and new */
    uint8_t *q[2];        /* h in 8 bits */
} layer;

typedef struct {
    enum { READ, SCORE, GENERATE } kind;
    int batch, length, threads;
    int begin, end; /* the slice of `length` steps that the threads are at */
    const int32_t *ids;
    float *logits;
    double *nats;
    engine_rule rule;
    int filters; /* whether the rule leaves symbols out by how likely they are */
    uint64_t seed, position;
    const uint64_t *streams;
    int32_t *symbols;
} job;

/* A symbol that may still be drawn. */
typedef struct {
    double key; /* what it is ranked by */
    double weight;
    int32_t symbol;
} candidate;

/* What is known of one number of threads, see choose_threads. */
typedef struct {
    double step;  /* seconds that a step takes; 0: not tried yet */
    double again; /* when to try it again, in seconds of the monotonic clock */
} pace;

struct engine {
    void *memory; /* what calloc gave; the handle begins at its first cache line */
    engine_options options;
    const kernels *kernels;
    int gates, states; /* of the cell */
    int width, padded; /* H and V, rounded up to groups */
    size_t step_bytes; /* of weights that one step reads */
    float *embedding;  /* (V, E) where there is no table */
    float *table;      /* [V][block][Z_STRIDE]: the first layer's input product and bias for each symbol */
    matrix projection;
    float *projection_bias; /* (padded), −∞ beyond V: no such symbol is ever drawn */
    float *logits;          /* (batch, padded) */
    float *adjusted;        /* (threads, padded): logits with what is not allowed at −∞, and penalised */
    candidate *candidates;  /* (threads, padded) */
    uint8_t *phases;        /* (batch): the state of each text's automaton */
    double *weights; /* (batch or threads, padded): softmax of a text's logits, or each thread's own of one text's */
    layer layers[MOST_LAYERS];

    job job;
    atomic_int not_finite; /* a text met logits that are no numbers */
    pace pace[13][7];      /* [log2 batch][log2 threads] */
    thread_pool *pool;
    _Alignas(64) atomic_int claimed; /* texts of the slice that a thread has taken */
};

/* What a cell is made of. A slot is the place of a gate in z, the sums that engine_isa.h reads. Slots hold gates in
 * torch's order, but for the GRU, whose n has two sums: n, r, z from the input, then r, z, n from the hidden state one
 * slot on. */
typedef struct {
    int gates, states;
    int input[4], hidden[4]; /* the gate of each slot */
} cell_layout;

/* ---- engine_weights.c ---- */

extern const cell_layout cell_layouts[];

/* A handle for options that have been checked, all but its thread pool, with a copy of the weights; NULL: no memory. */
engine *engine_allocate(const engine_options *options, int isa, const float *const *weights);

/* Bytes from one block to the next. */
static inline size_t block_bytes(const matrix *m)
{
    return (size_t)m->R * GROUP * (m->scale ? (size_t)(m->K + 3) / 4 * 4 : (size_t)m->K * 4);
}

/* ---- engine_sampling.c ---- */

/* Whether a rule's fields are in range and leave something to generate for each of `batch` texts. */
int is_rule(const engine *e, const engine_rule *rule, int batch);

/* The surprisal of a symbol in nats under a text's logits; NaN where they are not finite. */
double surprisal(const engine *e, int text, int32_t symbol);

/* The symbol sampled for a text at step t, its automaton in state `phase`. Row `row` of the weights and row `thread` of
 * the candidates are this thread's alone. */
int32_t sample(engine *e, int text, int row, int thread, int t, int phase);

/* The state of an automaton after a symbol. */
uint8_t phase_after(const engine *e, uint8_t phase, int32_t symbol);

static inline int in_range(int value, int low, int high) { return value >= low && value <= high; }

#endif
