// Lanczos with three lobes, half-pixel centres, weights normalised, no clamp against ringing:
// sinc(x) sinc(x / 3) for |x| < 3. Two passes, FIRST along x into a texture of 8 bits a channel,
// which software renderers read far faster than any deeper one, then along y. The kernel
// overshoots by up to 0.27, so the texture holds -SPARE ... 1 + SPARE; with these coarser
// steps results are within 1.5 levels of exact ones.
#include "fetch"

const float PI = 3.14159265;
const float SPARE = 0.28;

// Weights of the texels at -2 ... 3 for a point `t` past texel 0. The sines of six arguments
// follow from those of two.
void weights(float t, out vec3 near, out vec3 far) {
    t = clamp(t, 1e-4, 1.0 - 1e-4);
    float third = PI / 3.0 * t;
    vec3 turn = vec3(sin(third + 2.0 * PI / 3.0), sin(third + PI / 3.0), sin(third));
    vec3 before = t + vec3(2.0, 1.0, 0.0);
    vec3 after = vec3(1.0, 2.0, 3.0) - t;
    // the sign of sin(pi x) alternates from texel to texel
    near = vec3(1.0, -1.0, 1.0) * turn / (before * before);
    far = vec3(1.0, -1.0, 1.0) * turn / (after * after);
    float total = dot(near + far, vec3(1.0));
    near /= total;
    far /= total;
}

void main() {
#ifdef FIRST
    float where = at.x * size.x - 0.5;
    int other = int(at.y * size.y);
    int last = edge().x;
#define TAP(k) texel(k, other)
#else
    float where = at.y * size.y - 0.5;
    int other = int(at.x * size.x);
    int last = edge().y;
#define TAP(k) texel(other, k)
#endif
    float base = floor(where);
    vec3 near, far;
    weights(where - base, near, far);
    ivec3 a = clamp(int(base) + ivec3(-2, -1, 0), 0, last);
    ivec3 b = clamp(int(base) + ivec3(1, 2, 3), 0, last);
    vec3 sum = near.x * TAP(a.x) + near.y * TAP(a.y) + near.z * TAP(a.z)
        + far.x * TAP(b.x) + far.y * TAP(b.y) + far.z * TAP(b.z);
#ifdef FIRST
    sum = (sum + SPARE) / (1.0 + 2.0 * SPARE);
#else
    sum = sum * (1.0 + 2.0 * SPARE) - SPARE;
#endif
    colour = vec4(sum, 1.0);
}
