// A net's luma with the source's chroma: RGB = up(source) + (luma - luma(up(source))), BT.601
// full-range weights, up = Catmull-Rom. (All of it is linear, so that only the chroma of `up`
// counts; yet with a bilinear one pictures of games lost 0.03 to 0.13 dB.)
#include "cubic_taps"

uniform sampler2D detail;  // luma of the size drawn

void main() {
    vec3 large = cubic();
    float luma = texelFetch(detail, min(ivec2(at * out_size), ivec2(out_size) - 1), 0).r;
    colour = vec4(large + (luma - dot(large, vec3(0.299, 0.587, 0.114))), 1.0);
}
