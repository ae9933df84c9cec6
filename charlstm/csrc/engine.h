/* charlstm's inference engine: a trained character-level model at work, with nothing but the C library.
 *
 * One handle is one block of memory, made by engine_create and never grown. The hidden state belongs to the caller: it
 * goes in and comes out of every call, laid out (layers, states, batch, hidden), states being h, or h and c. A handle
 * serves one call at a time; two handles know nothing of each other.
 *
 * Weights come in torch's layout and gate order, as `charlstm/cells.py` and `charlstm/config.py` lay it down:
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
    int32_t batch;    /* most texts in one call */
    int32_t threads;  /* most threads in one call; small models use fewer */
    int32_t isa;      /* which of engine_isa_name's; -1 takes the best that this processor has */
    int32_t boundary; /* a text's state is zero before it reads this symbol; -1: there is none */
} engine_options;

typedef struct engine engine;

/* The instruction sets this library was compiled for, best first; NULL past the last. */
EXPORT const char *engine_isa_name(int isa);
/* Whether this processor has it (0 or 1). */
EXPORT int engine_isa_present(int isa);
/* Whether its int8 products are faster than its fp32 ones (0 or 1). */
EXPORT int engine_isa_has_int8(int isa);

/* NULL with *error set where a size is out of range or memory is short. The weights are copied. */
EXPORT engine *engine_create(const engine_options *options, const float *const *weights, int *error);
EXPORT void engine_destroy(engine *e);
/* The instruction set in use, and the threads that a call with `batch` texts uses. */
EXPORT int engine_isa(const engine *e);
EXPORT int engine_threads(const engine *e, int batch);

/* Each of `batch` texts reads `length` symbols: ids (length, batch). If logits is not NULL it receives those after the
 * last symbol: (batch, V). */
EXPORT int engine_read(engine *e, int batch, int length, const int32_t *ids, float *state, float *logits);

/* The surprise of each text at its own symbols: ids (length + 1, batch) → nats (length, batch). */
EXPORT int engine_score(engine *e, int batch, int length, const int32_t *ids, float *state, double *nats);

enum { ENGINE_NEVER = 255 };

/* How a symbol is drawn: kernels/drawing.py's Rule, where each part and their order are defined. */
typedef struct {
    double temperature, top_p, min_p, typical, penalty; /* 1, 1, 0, 1, 1 leave the softmax as it is */
    int32_t top_k;                                      /* 0: all */
    int32_t window;                                     /* symbols that the penalty looks back at */
    int32_t states;                                     /* of the automaton; at most ENGINE_NEVER */
    const uint8_t *allowed;                             /* (V), 0: never drawn; NULL: all are allowed */
    const int32_t *recent;  /* (window, batch): the symbols before the first draw, ids the last of them; -1: none */
    const uint8_t *follows; /* (states, V): the automaton's state after each symbol, or ENGINE_NEVER; NULL: none */
    const uint8_t *phases;  /* (batch): its state before the first draw */
} engine_rule;

/* Each text reads ids (batch) and goes on by `length` symbols drawn by the rule. The n-th draw of text b takes the
 * random number (seed, streams[b], position + n). symbols: (length, batch). */
EXPORT int engine_generate(engine *e, int batch, int length, const int32_t *ids, float *state, const engine_rule *rule,
                           uint64_t seed, const uint64_t *streams, uint64_t position, int32_t *symbols);

#endif
