// What the scaling shaders share. Texels are read by texelFetch: exact, and no slower than the
// sampler's own filter even on software renderers.
uniform sampler2D image;  // RGB, row 0 is the picture's top
uniform vec2 size;        // of `image`, in texels
uniform vec2 out_size;    // of the region drawn, in pixels
in vec2 at;               // (0, 0) the picture's top left corner, (1, 1) its bottom right one
out vec4 colour;

vec3 texel(int x, int y) {
    return texelFetch(image, ivec2(x, y), 0).rgb;
}

ivec2 edge() {
    return ivec2(size) - 1;
}
