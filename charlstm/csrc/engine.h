/* charlstm's inference engine: reads, scores and generates sequences with a trained character-level model.
 *
 * One handle is one block of memory, allocated by engine_create; its size never changes. The hidden state belongs to
 * the caller: every call reads and updates an array (layers, states, batch, hidden), where the states are h, or h and
 * c. A handle serves one call at a time; different handles share no data.
 *
 * Weights have torch's layout and gate order, which `charlstm/cells.py` and `charlstm/config.py` define:
 *     embedding (V, E); for each layer weight_ih (G·H, in), weight_hh (G·H, H), bias_ih, bias_hh (G·H) and, in the
 *     peephole cell, peephole (3, H); projection (V, H) and its bias (V).
 */
#ifndef CHARLSTM_ENGINE_H
#define CHARLSTM_ENGINE_H

#include "core.h"

#include <stdint.h>

enum engine_error { ENGINE_OK, ENGINE_NO_MEMORY, ENGINE_BAD_ARGUMENT, ENGINE_NOT_FINITE };

typedef struct {
    int32_t cell; /* of core.h */
    int32_t vocabulary, embedding, hidden, layers;
    int32_t int8;     /* 0: fp32; 1: weights and hidden activations rounded to 8 bits */
    int32_t batch;    /* largest number of sequences in one call */
    int32_t threads;  /* largest number of threads in one call; small models use fewer */
    int32_t isa;      /* index for engine_isa_name; -1: the best that this processor has */
    int32_t boundary; /* the state is set to zero before this symbol is read; -1: no such symbol */
} engine_options;

typedef struct engine engine;

/* Name of an instruction set that this library was compiled for, best first; NULL after the last. */
EXPORT const char *engine_isa_name(int isa);
/* Whether this processor has it (0 or 1). */
EXPORT int engine_isa_present(int isa);
/* Whether its int8 products are faster than its fp32 ones (0 or 1). */
EXPORT int engine_isa_has_int8(int isa);

/* Create a handle; NULL, with *error set, if a size is out of range or memory is insufficient. The weights are copied.
 */
EXPORT engine *engine_create(const engine_options *options, const float *const *weights, int *error);
EXPORT void engine_destroy(engine *e);
/* The instruction set in use, and the largest number of threads that a call with `batch` sequences uses. */
EXPORT int engine_isa(const engine *e);
EXPORT int engine_threads(const engine *e, int batch);

/* Read `length` symbols of each of `batch` sequences: ids (length, batch). If logits is not NULL, it receives the
 * logits after the last symbol, (batch, V). */
EXPORT int engine_read(engine *e, int batch, int length, const int32_t *ids, float *state, float *logits);

/* Compute the surprisal of each symbol but the first: ids (length + 1, batch) → nats (length, batch). With top > 0, also
 * the `top` most probable symbols at each of these positions and their probabilities: best and shares (length, batch,
 * top), the most probable first, of equal ones the first in the vocabulary; −1 and NaN if the logits are not finite. */
EXPORT int engine_score(engine *e, int batch, int length, const int32_t *ids, float *state, double *nats, int top,
                        int32_t *best, double *shares);

enum { ENGINE_NEVER = -1 };

/* How a symbol is sampled: SamplingRule of inference/filters.py, which defines each filter and their order. */
typedef struct {
    double temperature, top_p, min_p, typical, penalty; /* 1, 1, 0, 1, 1 leave the softmax as it is */
    int32_t top_k;                                      /* 0: all */
    int32_t window;                                     /* number of previous symbols that the penalty applies to */
    int32_t states, classes; /* number of states of the automaton, and of the classes of symbols that it distinguishes */
    int32_t end;             /* the state in which a text has ended; used with a limit only */
    const uint8_t *allowed;  /* (V), 0: never sampled; NULL: all symbols are allowed */
    const int32_t
        *recent; /* (window, batch): the symbols before the first sampled one, the last row is ids; -1: none */
    const int32_t *follows;   /* (states, classes): state after a symbol of each class, or ENGINE_NEVER; NULL: none */
    const int32_t *class_of;  /* (V): class of each symbol */
    const int32_t *distances; /* (states): fewest symbols from each state to an accepting one, whose distance is 0 */
    const int32_t *phases;    /* (batch): state of each automaton before the first sampled symbol */
    /* Largest number of symbols of a text, from the first of this call on; -1: no limit. A symbol is not sampled if no
     * accepting state can be reached within the limit; in an accepting state it is sampled and leads to `end`. */
    int64_t limit;
} engine_rule;

/* Read ids (batch), then sample `length` symbols of each sequence by the rule. The n-th symbol of sequence b takes the
 * random number (seed, streams[b], position + n). symbols: (length, batch). */
EXPORT int engine_generate(engine *e, int batch, int length, const int32_t *ids, float *state, const engine_rule *rule,
                           uint64_t seed, const uint64_t *streams, uint64_t position, int32_t *symbols);

#endif
