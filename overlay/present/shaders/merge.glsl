// A net's luma with the source's chroma: RGB = up(source) + (luma - luma(up(source))), BT.601
// full-range weights. All of it is linear, so only the chroma of `up` counts; it is bilinear.
#include "fetch"

uniform sampler2D detail;   // luma of the size drawn

void main() {
    vec3 smooth_ = bilinear();
    float luma = texelFetch(detail, min(ivec2(at * out_size), ivec2(out_size) - 1), 0).r;
    colour = vec4(smooth_ + (luma - dot(smooth_, vec3(0.299, 0.587, 0.114))), 1.0);
}
