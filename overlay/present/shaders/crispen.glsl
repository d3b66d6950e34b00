// At the source's own size: 3x3 texels with weights (-1/8, 5/4, -1/8) along each axis. Bilinear
// enlarging of the result is Catmull-Rom enlarging of the source halfway between texels, and close
// to it elsewhere. The result overshoots, so -SPARE ... 1 + SPARE is stored. See merge.glsl.
#include "fetch"

const float SPARE = 0.125;

vec3 across(ivec3 x, int y) {
    return 1.25 * texel(x[1], y) - 0.125 * (texel(x[0], y) + texel(x[2], y));
}

void main() {
    ivec2 here = min(ivec2(at * size), edge());
    ivec3 x = clamp(here.x + ivec3(-1, 0, 1), 0, edge().x);
    ivec3 y = clamp(here.y + ivec3(-1, 0, 1), 0, edge().y);
    vec3 sides = across(x, y[0]) + across(x, y[2]);
    vec3 crisp = 1.25 * across(x, y[1]) - 0.125 * sides;
    colour = vec4((crisp + SPARE) / (1.0 + 2.0 * SPARE), 1.0);
}
