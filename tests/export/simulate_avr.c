/* Runs a program for the ATmega328P in simavr: `simulate PROGRAM OUTPUT` writes to OUTPUT what the program sends to its
 * serial port, and prints the number of cycles and the size of the stack in bytes in the last line of stdout. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <simavr/avr_uart.h>
#include <simavr/sim_avr.h>
#include <simavr/sim_core.h>
#include <simavr/sim_elf.h>

static void received(struct avr_irq_t *irq, uint32_t value, void *output)
{
    (void)irq;
    fputc((int)value, output);
}

int main(int argc, char **argv)
{
    elf_firmware_t firmware;
    memset(&firmware, 0, sizeof firmware);
    if (argc != 3 || elf_read_firmware(argv[1], &firmware)) return 1;
    strcpy(firmware.mmcu, "atmega328p");
    firmware.frequency = 16000000;
    avr_t *avr = avr_make_mcu_by_name(firmware.mmcu);
    if (!avr) return 1;
    FILE *output = fopen(argv[2], "wb");
    if (!output) return 1;
    avr_init(avr);
    avr_load_firmware(avr, &firmware);
    uint32_t flags = 0;
    avr_ioctl(avr, AVR_IOCTL_UART_GET_FLAGS('0'), &flags);
    flags &= ~(uint32_t)(AVR_UART_FLAG_STDIO | AVR_UART_FLAG_POLL_SLEEP);
    avr_ioctl(avr, AVR_IOCTL_UART_SET_FLAGS('0'), &flags);
    avr_irq_register_notify(avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), UART_IRQ_OUTPUT), received, output);
    int state, lowest = avr->ramend;
    do {
        state = avr_run(avr);
        const int stack_pointer = avr->data[R_SPL] | avr->data[R_SPH] << 8;
        if (stack_pointer > 255 && stack_pointer < lowest) lowest = stack_pointer; /* 0 before the program sets it */
    } while (state != cpu_Done && state != cpu_Crashed && !(state == cpu_Sleeping && !avr->sreg[S_I]));
    printf("%llu %d\n", (unsigned long long)avr->cycle, avr->ramend - lowest);
    return fclose(output) || state == cpu_Crashed;
}
