// Bilinear, half-pixel centres.
#include "fetch"

void main() {
    colour = vec4(bilinear(), 1.0);
}
