// Edge-adaptive upscaling, first pass of FSR 1, written from AMD's published description of
// FidelityFX Super Resolution 1.0 (gpuopen.com/fidelityfx-superresolution). Twelve texels around
// the pixel; the gradient there turns the kernel along the edge and its strength stretches it.
// Designed for factors up to 2 per axis; it runs for any, with less to gain.
#include "fetch"

// Twice the luma: cheap, and only ratios of it count.
float brightness(vec3 c) {
    return c.g + 0.5 * (c.r + c.b);
}

// Add one texel's gradient, seen in its four neighbours, by its bilinear share. `strength` is 1
// on a clean slope or step and 0 on a line of one texel's width, where turning would blur.
void look(
    inout vec2 gradient, inout float strength, float share,
    float above, float left, float centre, float right, float below
) {
    vec2 rise = vec2(right - left, below - above);
    vec2 most = vec2(
        max(abs(right - centre), abs(centre - left)),
        max(abs(below - centre), abs(centre - above)));
    vec2 clean = clamp(abs(rise) / max(most, vec2(1e-6)), 0.0, 1.0);
    gradient += share * rise;
    strength += share * dot(clean, clean);
}

// Along the gradient (x) and along the edge (y), in stretched texels; and the window's shape.
vec2 axis;
vec2 stretch;
float lobe;
float reach;
vec4 total;

void tap(vec2 offset, vec3 c) {
    vec2 turned = vec2(dot(offset, axis), dot(offset, vec2(-axis.y, axis.x))) * stretch;
    float square = min(dot(turned, turned), reach);
    // a polynomial in the squared distance, close to Lanczos with two lobes where lobe is 1/4
    float body = 0.4 * square - 1.0;
    float window = lobe * square - 1.0;
    total += (1.5625 * body * body - 0.5625) * window * window * vec4(c, 1.0);
}

void main() {
    vec2 where = at * size - 0.5;
    // the texels in use change from one base to the next, so rounding must not choose it
    vec2 base = floor(where + 1e-3);
    vec2 p = max(where - base, 0.0);
    ivec4 x = clamp(int(base.x) + ivec4(-1, 0, 1, 2), 0, edge().x);
    ivec4 y = clamp(int(base.y) + ivec4(-1, 0, 1, 2), 0, edge().y);
    // names are column and row, the pixel lies among c11, c21, c12 and c22
    vec3 c10 = texel(x[1], y[0]), c20 = texel(x[2], y[0]);
    vec3 c01 = texel(x[0], y[1]), c11 = texel(x[1], y[1]);
    vec3 c21 = texel(x[2], y[1]), c31 = texel(x[3], y[1]);
    vec3 c02 = texel(x[0], y[2]), c12 = texel(x[1], y[2]);
    vec3 c22 = texel(x[2], y[2]), c32 = texel(x[3], y[2]);
    vec3 c13 = texel(x[1], y[3]), c23 = texel(x[2], y[3]);
    float b11 = brightness(c11), b21 = brightness(c21);
    float b12 = brightness(c12), b22 = brightness(c22);

    vec2 gradient = vec2(0.0);
    float strength = 0.0;
    vec2 q = 1.0 - p;
    look(gradient, strength, q.x * q.y, brightness(c10), brightness(c01), b11, b21, b12);
    look(gradient, strength, p.x * q.y, brightness(c20), b11, b21, brightness(c31), b22);
    look(gradient, strength, q.x * p.y, b11, brightness(c02), b12, b22, brightness(c13));
    look(gradient, strength, p.x * p.y, b21, b12, b22, brightness(c32), brightness(c23));

    float steep = dot(gradient, gradient);
    axis = steep < 1.0 / 32768.0 ? vec2(1.0, 0.0) : gradient * inversesqrt(max(steep, 1e-9));
    strength = 0.25 * strength * strength;
    float diagonal = 1.0 / max(abs(axis.x), abs(axis.y));
    stretch = vec2(1.0 + (diagonal - 1.0) * strength, 1.0 - 0.5 * strength);
    lobe = 0.5 - 0.29 * strength;
    reach = 1.0 / lobe;

    total = vec4(0.0);
    tap(vec2(0.0, -1.0) - p, c10);
    tap(vec2(1.0, -1.0) - p, c20);
    tap(vec2(-1.0, 0.0) - p, c01);
    tap(-p, c11);
    tap(vec2(1.0, 0.0) - p, c21);
    tap(vec2(2.0, 0.0) - p, c31);
    tap(vec2(-1.0, 1.0) - p, c02);
    tap(vec2(0.0, 1.0) - p, c12);
    tap(vec2(1.0, 1.0) - p, c22);
    tap(vec2(2.0, 1.0) - p, c32);
    tap(vec2(0.0, 2.0) - p, c13);
    tap(vec2(1.0, 2.0) - p, c23);
    vec3 low = min(min(c11, c21), min(c12, c22));
    vec3 high = max(max(c11, c21), max(c12, c22));
    colour = vec4(clamp(total.rgb / total.a, low, high), 1.0);
}
