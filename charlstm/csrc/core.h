/* Definitions that all parts of charlstm's compiled library, `charlstm._core`, share: version, exported names, cells.
 *
 *     engine.h      generate and score text with a trained model
 *     recurrence.h  train a model: a layer over a whole sequence, forward and backward
 *
 * The library is C11 with GNU extensions (-std=gnu11): the vector types and function attributes of GCC and clang, with
 * which one source is compiled for every instruction set, and the POSIX functions that plain C11 hides. It uses the C
 * library, libm and POSIX threads, and nothing of Python.
 */
#ifndef CHARLSTM_CORE_H
#define CHARLSTM_CORE_H

/* The other names of the library are hidden, so that its files call each other directly. */
#define EXPORT __attribute__((visibility("default")))

/* The number changes with every struct or function of engine.h and recurrence.h. The loader compares it before it calls
 * any other function of the library. `charlstm/native_library.py` has the other copy. */
#define CHARLSTM_ABI 7
EXPORT int charlstm_abi(void);

/* The cells, in the order of `charlstm/cells.py`. */
enum cell { LSTM, PEEPHOLE, COUPLED, GRU, RNN };

#endif
