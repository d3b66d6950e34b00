// Shrinking: each pixel is the mean of the source over the pixel's own area, so nothing aliases.
#include "fetch"


void main() {
    vec2 ratio = size / out_size;  // source texels per pixel
    vec2 near = at * size - 0.5 * ratio;
    vec2 far = near + ratio;
    ivec2 first = max(ivec2(floor(near + 0.001)), 0);
    ivec2 last = min(ivec2(ceil(far - 0.001)) - 1, edge());
    vec4 sum = vec4(0.0);
    for (int y = first.y; y <= last.y; ++y) {
        float high = min(far.y, float(y + 1)) - max(near.y, float(y));
        for (int x = first.x; x <= last.x; ++x) {
            float wide = min(far.x, float(x + 1)) - max(near.x, float(x));
            sum += wide * high * vec4(texel(x, y), 1.0);
        }
    }
    colour = vec4(sum.rgb / sum.a, 1.0);
}
