// Bilinear, half-pixel centres.
#include "fetch"

vec3 linear() {
    vec2 where = at * size - 0.5;
    vec2 base = floor(where);
    vec2 part = where - base;
    ivec2 near = max(ivec2(base), 0);
    ivec2 far = min(ivec2(base) + 1, edge());
    return mix(
        mix(texel(near.x, near.y), texel(far.x, near.y), part.x),
        mix(texel(near.x, far.y), texel(far.x, far.y), part.x),
        part.y);
}
