// Prints verse to the serial monitor at 115,200 baud, on an Arduino Uno.
//
// The exported program is C and this sketch is C++, so model.h is compiled in poet.c:
//
//     charlstm train book.txt --hidden 64 --embedding 10 -o runs/small
//     charlstm export c -c runs/small -o model.h

extern "C" {
void poet_begin(uint32_t seed);
unsigned poet_next(char *text);
}

void setup()
{
    Serial.begin(115200);
    poet_begin(1);
}

void loop()
{
    char text[4];  // the UTF-8 of one character
    const unsigned length = poet_next(text);
    Serial.write(reinterpret_cast<const uint8_t *>(text), length);
}
