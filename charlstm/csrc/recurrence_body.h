/* The loops of recurrence.c, for one instruction set: once in float, once in double. Defines needed: ISA, VB, MR. */

#define REAL float
#define EXP exp_f32
#include "recurrence_loops.h"
#undef REAL
#undef EXP

#define REAL double
#define EXP exp_f64
#include "recurrence_loops.h"
#undef REAL
#undef EXP

#undef ISA
#undef VB
#undef MR
