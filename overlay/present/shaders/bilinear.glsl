// Bilinear; see linear.glsl.
#include "linear"

void main() {
    colour = vec4(linear(), 1.0);
}
