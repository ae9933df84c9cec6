/* The loops of recurrence.c for one instruction set: in float, in double, and in float with operands rounded to bf16.
 * Define before including: ISA and TARGET (simd.h), VB (bytes per vector), MR (rows per tile). */

#define ELEMENT   float
#define REAL      float
#define EXP       exp_f32
#define EACH_UNIT INDEPENDENT
#define ROUNDS    0
#define PAIR      1
#define OPERAND   float
#include "recurrence_loops.h"
#undef ELEMENT
#undef ROUNDS

/* Arithmetic in float on rounded numbers, for a set without instructions for bf16. */
#define ELEMENT bf16
#define ROUNDS  1
#include "recurrence_loops.h"
#undef ELEMENT
#undef REAL
#undef EXP
#undef EACH_UNIT
#undef ROUNDS
#undef OPERAND

#define ELEMENT   double
#define REAL      double
#define EXP       exp_f64
#define EACH_UNIT INDEPENDENT_WITH_CALLS
#define ROUNDS    0
#define OPERAND   double
#include "recurrence_loops.h"
#undef ELEMENT
#undef REAL
#undef EXP
#undef EACH_UNIT
#undef ROUNDS
#undef PAIR
#undef OPERAND

#undef ISA
#undef TARGET
#undef VB
#undef MR
