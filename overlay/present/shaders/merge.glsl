// A net's luma with the source's chroma: RGB = up(source) + (luma - luma(up(source))), BT.601
// full-range weights. All of it is linear, so that only the chroma of `up` counts. `image` is the
// source from crispen.glsl: bilinear enlarging of that gave pictures of games the PSNR of
// Catmull-Rom (-0.003 to +0.14 dB) at about half the cost; of the plain source it lost 0.03 to
// 0.7 dB, the more the better the luma is.
#include "linear"

const float SPARE = 0.125;  // as in crispen.glsl

uniform sampler2D detail;  // luma of the size drawn

void main() {
    vec3 large = linear() * (1.0 + 2.0 * SPARE) - SPARE;
    float luma = texelFetch(detail, min(ivec2(at * out_size), ivec2(out_size) - 1), 0).r;
    colour = vec4(large + (luma - dot(large, vec3(0.299, 0.587, 0.114))), 1.0);
}
