// Nearest texel: exact for whole multiples of the source and for 1:1.
#include "fetch"

void main() {
    ivec2 nearest = min(ivec2(at * size), edge());
    colour = vec4(texel(nearest.x, nearest.y), 1.0);
}
