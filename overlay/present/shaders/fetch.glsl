// What the scaling shaders share. Texels are read by texelFetch: exact, and on software
// renderers several times as fast as the sampler's own filter.
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

vec3 bilinear() {
    vec2 where = at * size - 0.5;
    vec2 base = floor(where);
    vec2 part = where - base;
    ivec2 near = max(ivec2(base), 0);
    ivec2 far = min(ivec2(base) + 1, edge());
    return mix(
        mix(texel(near.x, near.y), texel(far.x, near.y), part.x),
        mix(texel(near.x, far.y), texel(far.x, far.y), part.x),
        part.y);
}
