/* The loops of recurrence.c for one instruction set: once in float, once in double.
 * Define before including: ISA and TARGET (simd.h), VB (bytes per vector), MR (rows per tile). */

#define REAL      float
#define EXP       exp_f32
#define EACH_UNIT INDEPENDENT
#include "recurrence_loops.h"
#undef REAL
#undef EXP
#undef EACH_UNIT

#define REAL      double
#define EXP       exp_f64
#define EACH_UNIT INDEPENDENT_WITH_CALLS
#include "recurrence_loops.h"
#undef REAL
#undef EXP
#undef EACH_UNIT

#undef ISA
#undef TARGET
#undef VB
#undef MR
