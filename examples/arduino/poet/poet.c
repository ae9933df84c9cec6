/* The two functions of the model that the sketch calls. */
#include "model.h"

static charlstm model;

void poet_begin(uint32_t seed);
unsigned poet_next(char *text);

void poet_begin(uint32_t seed)
{
    charlstm_init(&model, seed);
    charlstm_feed(&model, CHARLSTM_START);
}

/* Sample the next character at temperature 0.8, copy its UTF-8, and return its length in bytes. */
unsigned poet_next(char *text) { return charlstm_text(charlstm_next(&model, 800, 0), text); }
