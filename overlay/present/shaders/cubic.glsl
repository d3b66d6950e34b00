// The two-parameter cubic of Mitchell and Netravali, "Reconstruction Filters in Computer
// Graphics" (SIGGRAPH 1988), half-pixel centres, 4x4 texels. B = 0, C = 1/2 is Catmull-Rom,
// B = C = 1/3 is the authors' choice.
#include "fetch"

// Weights of the texels at -1, 0, 1 and 2 for a point `t` past texel 0: columns are the
// coefficients of t^0, t^1, t^2 and t^3.
const mat4 KERNEL = mat4(
    B, 6.0 - 2.0 * B, B, 0.0,
    -3.0 * B - 6.0 * C, 0.0, 3.0 * B + 6.0 * C, 0.0,
    3.0 * B + 12.0 * C, -18.0 + 12.0 * B + 6.0 * C, 18.0 - 15.0 * B - 12.0 * C, -6.0 * C,
    -B - 6.0 * C, 12.0 - 9.0 * B - 6.0 * C, -12.0 + 9.0 * B + 6.0 * C, B + 6.0 * C) / 6.0;

vec4 weights(float t) {
    return KERNEL * vec4(1.0, t, t * t, t * t * t);
}

void main() {
    vec2 where = at * size - 0.5;
    vec2 base = floor(where);
    vec4 across = weights(where.x - base.x);
    vec4 down = weights(where.y - base.y);
    ivec4 x = clamp(int(base.x) + ivec4(-1, 0, 1, 2), 0, edge().x);
    ivec4 y = clamp(int(base.y) + ivec4(-1, 0, 1, 2), 0, edge().y);
    vec3 sum = vec3(0.0);
#define ROW(k) sum += down[k] * ( \
        across.x * texel(x.x, y[k]) + across.y * texel(x.y, y[k]) \
        + across.z * texel(x.z, y[k]) + across.w * texel(x.w, y[k]))
    ROW(0);
    ROW(1);
    ROW(2);
    ROW(3);
    colour = vec4(sum, 1.0);
}
