/* Text on a Cortex-M: prints what the model says through the debugger's semihosting, then the instructions it took.
 *
 * The model is model.c, which `charlstm export c -o model.c` writes. Nothing is linked but this file: no C library, no
 * heap. On a real board, replace `put` by a write to a serial port.
 */
#include "model.c"

#ifndef CHARACTERS
#define CHARACTERS 2000
#endif
#ifndef TICK_INSTRUCTIONS
#define TICK_INSTRUCTIONS 40 /* of the emulator, where an instruction takes 1 ns and SysTick counts at 25 MHz */
#endif

#define SYSTICK_CONTROL (*(volatile uint32_t *)0xe000e010)
#define SYSTICK_RELOAD (*(volatile uint32_t *)0xe000e014)
#define SYSTICK_VALUE (*(volatile uint32_t *)0xe000e018)

extern uint32_t data_begin[], data_end[], data_source[], bss_begin[], bss_end[];
static charlstm model;
static uint32_t stack[512];

static int semihosting(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void put(char c) { semihosting(3, &c); }

static void put_number(uint32_t n)
{
    if (n >= 10) put_number(n / 10);
    put((char)('0' + n % 10));
}

/* What gcc calls for copies and initialisations; no C library is linked. */
void *memcpy(void *to, const void *from, size_t n)
{
    for (size_t k = 0; k < n; k++) ((volatile char *)to)[k] = ((const char *)from)[k];
    return to;
}

void *memset(void *to, int value, size_t n)
{
    for (size_t k = 0; k < n; k++) ((volatile char *)to)[k] = (char)value;
    return to;
}

int main(void)
{
    static char text[CHARACTERS * CHARLSTM_TEXT_MAX];
    size_t length = 0;
    SYSTICK_RELOAD = SYSTICK_VALUE = 0xffffff;
    SYSTICK_CONTROL = 5;
    charlstm_init(&model, 1);
    charlstm_feed(&model, CHARLSTM_START);
    uint32_t before = SYSTICK_VALUE, ticks = 0;
    for (int n = 0; n < CHARACTERS; n++) {
        length += charlstm_text(charlstm_next(&model, 800, 0), text + length);
        const uint32_t now = SYSTICK_VALUE;
        ticks += (before - now) & 0xffffff;
        before = now;
    }
    for (size_t k = 0; k < length; k++) put(text[k]);
    put('\0');
    put_number(ticks / CHARACTERS * TICK_INSTRUCTIONS);
    static const uint32_t finished[2] = {0x20026, 0};
    semihosting(0x18, (const void *)(uintptr_t)finished[0]);
    return 0;
}

static void reset(void)
{
    for (uint32_t *to = data_begin, *from = data_source; to < data_end;) *to++ = *from++;
    for (uint32_t *to = bss_begin; to < bss_end;) *to++ = 0;
    main();
    for (;;) {}
}

static const struct {
    uint32_t *stack;
    void (*reset)(void);
} vectors __attribute__((section(".vectors"), used)) = {stack + 512, reset};
