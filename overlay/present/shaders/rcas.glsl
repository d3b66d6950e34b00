// Contrast-adaptive sharpening, second pass of FSR 1, written from AMD's published description of
// FidelityFX Super Resolution 1.0. The four neighbours get one negative weight, as large as it can
// be without any channel leaving 0 ... 1, and at most LIMIT; 1:1.
#include "fetch"

uniform float sharpness;  // 2^-stops: 1 is the most, each stop halves it

const float LIMIT = 0.1875;

void main() {
    ivec2 here = min(ivec2(at * size), edge());
    ivec2 before = max(here - 1, 0);
    ivec2 after = min(here + 1, edge());
    vec3 centre = texel(here.x, here.y);
    vec3 above = texel(here.x, before.y), below = texel(here.x, after.y);
    vec3 left = texel(before.x, here.y), right = texel(after.x, here.y);
    vec3 low = min(min(above, below), min(left, right));
    vec3 high = max(max(above, below), max(left, right));
    // the weights at which a pixel would reach 0, or 1, at the worst
    vec3 floor_ = -min(low, centre) / max(4.0 * high, 1e-6);
    vec3 ceil_ = (1.0 - max(high, centre)) / min(4.0 * low - 4.0, -1e-6);
    vec3 allowed = max(floor_, ceil_);
    float weight = max(allowed.r, max(allowed.g, allowed.b));
    weight = sharpness * clamp(weight, -LIMIT, 0.0);
    vec3 sum = above + below + left + right;
    colour = vec4((centre + weight * sum) / (1.0 + 4.0 * weight), 1.0);
}
