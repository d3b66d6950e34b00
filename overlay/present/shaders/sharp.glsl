// Enlarging by any factor >= 1 with hard texels: each pixel is the mean of the nearest-scaled
// picture over its own area, so texels keep their shape and only the pixels that an edge between
// two texels crosses are mixed.
#include "fetch"

void main() {
    vec2 ratio = size / out_size;  // source texels per pixel
    vec2 far = at * size + 0.5 * ratio;  // far corner of the pixel, in texels
    vec2 line = floor(far);              // the last edge between texels before it
    vec2 part = clamp((far - line) / ratio, 0.0, 1.0);
    ivec2 a = max(ivec2(line) - 1, 0);
    ivec2 b = min(ivec2(line), edge());
    colour = vec4(
        mix(mix(texel(a.x, a.y), texel(b.x, a.y), part.x),
            mix(texel(a.x, b.y), texel(b.x, b.y), part.x),
            part.y),
        1.0);
}
