// Nearest texel, by the sampler: exact for whole multiples of the source and for 1:1.
#include "fetch"

void main() {
    colour = vec4(texture(image, at).rgb, 1.0);
}
