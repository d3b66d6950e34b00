// The cubic that B and C name; see cubic_taps.glsl.
#include "cubic_taps"

void main() {
    colour = vec4(cubic(), 1.0);
}
