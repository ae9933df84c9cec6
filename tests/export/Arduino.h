/* As much of Arduino's core as examples/arduino needs, for an ATmega328P: Serial, and a main that calls the sketch. */
#pragma once
#include <avr/interrupt.h>
#include <avr/io.h>
#include <avr/sleep.h>
#include <stddef.h>
#include <stdint.h>

void setup();
void loop();

struct SerialPort {
    void begin(unsigned long baud)
    {
        UCSR0A = 1 << U2X0;
        UBRR0 = static_cast<uint16_t>(F_CPU / 8 / baud - 1);
        UCSR0B = 1 << TXEN0;
    }
    size_t write(const uint8_t *bytes, size_t n)
    {
        for (size_t k = 0; k < n; k++) {
            while (!(UCSR0A & (1 << UDRE0))) {}
            UDR0 = bytes[k];
        }
        return n;
    }
};
static SerialPort Serial;

int main()
{
    setup();
    for (int n = 0; n < LOOPS; n++) loop();
    cli(); /* a processor that sleeps without interrupts has finished */
    sleep_enable();
    sleep_cpu();
}
