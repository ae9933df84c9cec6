/* Continues a text on the host: ./complete "ROMEO:" prints the next 200 characters at temperature 0.5.
 *
 * The model is model.c, which `charlstm export c -o model.c` writes. A program that only generates text needs no main of
 * its own: compile model.c with -DCHARLSTM_MAIN.
 */
#include <stdio.h>
#include <string.h>

#include "model.c"

/* Let the model read the longest symbol that the text begins with; returns its length in bytes. */
static size_t feed_symbol(charlstm *m, const char *text)
{
    char symbol[CHARLSTM_TEXT_MAX];
    size_t longest = 0;
    int found = -1;
    for (int k = 0; k < CHARLSTM_VOCABULARY; k++) {
        const size_t length = charlstm_text(k, symbol);
        if (length > longest && strncmp(text, symbol, length) == 0) longest = length, found = k;
    }
    charlstm_feed(m, found); /* -1, a character that the model does not know, is ignored */
    return longest ? longest : 1;
}

int main(int argc, char **argv)
{
    charlstm model;
    charlstm_init(&model, 7);
    charlstm_feed(&model, CHARLSTM_START);
    for (const char *text = argc > 1 ? argv[1] : ""; *text;) text += feed_symbol(&model, text);
    for (int n = 0; n < 200; n++) {
        char text[CHARLSTM_TEXT_MAX];
        const int symbol = charlstm_next(&model, 500, 0);
        if (symbol == CHARLSTM_BOUNDARY) break;
        fwrite(text, 1, charlstm_text(symbol, text), stdout);
    }
    putchar('\n');
    return 0;
}
