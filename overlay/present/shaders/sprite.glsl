// A picture with premultiplied alpha, bilinear, to be blended.
#include "fetch"

vec4 whole(int x, int y) {
    return texelFetch(image, ivec2(x, y), 0);
}

void main() {
    vec2 place = at * size - 0.5;
    vec2 base = floor(place);
    vec2 part = place - base;
    ivec2 a = max(ivec2(base), 0);
    ivec2 b = min(ivec2(base) + 1, edge());
    colour = mix(
        mix(whole(a.x, a.y), whole(b.x, a.y), part.x),
        mix(whole(a.x, b.y), whole(b.x, b.y), part.x),
        part.y);
}
