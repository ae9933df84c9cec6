/* Text on an ATmega328P (Arduino Uno: 2 KB of RAM, 32 KB of flash, 16 MHz): prints it to the serial port at 1 Mbaud.
 *
 * The model is model.c, which `charlstm export c -o model.c` writes. A model of 1 x 64 with an embedding of 12 and up to
 * 70 symbols fits:
 *
 *     charlstm train book.txt --hidden 64 --embedding 12 -o runs/small
 *     charlstm export c -c runs/small -o model.c
 *     avr-gcc -mmcu=atmega328p -std=gnu99 -Os main.c -o poet.elf
 */
#include <avr/interrupt.h>
#include <avr/io.h>
#include <avr/sleep.h>

#include "model.c"

#ifndef CHARACTERS
#define CHARACTERS 2000
#endif

static charlstm model;

static void put(char c)
{
    while (!(UCSR0A & (1 << UDRE0))) {}
    UDR0 = (uint8_t)c;
}

int main(void)
{
    UBRR0 = 1; /* 1 Mbaud at 16 MHz, with double speed */
    UCSR0A = 1 << U2X0;
    UCSR0B = 1 << TXEN0;
    charlstm_init(&model, 1);
    charlstm_feed(&model, CHARLSTM_START);
    for (int n = 0; n < CHARACTERS; n++) {
        char text[CHARLSTM_TEXT_MAX];
        const unsigned length = charlstm_text(charlstm_next(&model, 800, 0), text);
        for (unsigned k = 0; k < length; k++) put(text[k]);
    }
    cli(); /* a processor that sleeps without interrupts has finished */
    sleep_enable();
    sleep_cpu();
    return 0;
}
