// Glyphs are as large on the surface as in the atlas, so that a texel is a pixel.
uniform sampler2D image;  // coverage

in vec2 texel_at;
flat in vec4 tint;
flat in int plain;
out vec4 colour;

void main() {
    float cover = plain == 1 ? 1.0 : texelFetch(image, ivec2(texel_at), 0).r;
    colour = vec4(tint.rgb, tint.a * cover);
}
