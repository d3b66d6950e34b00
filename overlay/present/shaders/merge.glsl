// A net's luma with the source's chroma: RGB = up(source) + (luma - luma(up(source))), BT.601
// full-range weights. All of it is linear, so that only the chroma of `up` counts: bilinear, as
// sharper filters bring back the aliasing of a game's small render (docs/decisions.md).
#include "linear"

uniform sampler2D detail;  // luma of the size drawn

void main() {
    vec3 large = linear();
    float luma = texelFetch(detail, min(ivec2(at * out_size), ivec2(out_size) - 1), 0).r;
    colour = vec4(large + (luma - dot(large, vec3(0.299, 0.587, 0.114))), 1.0);
}
