// One rectangle per instance, in surface pixels from the top left corner.
uniform vec2 surface;
uniform vec2 cell;  // of the glyph atlas, in texels

layout(location = 0) in vec4 box;    // left, top, width, height
layout(location = 1) in vec4 paint;  // RGBA
layout(location = 2) in float glyph; // index in the atlas, negative for a plain rectangle

out vec2 texel_at;
flat out vec4 tint;
flat out int plain;

void main() {
    vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1);
    vec2 place = (box.xy + corner * box.zw) / surface * 2.0 - 1.0;
    gl_Position = vec4(place.x, -place.y, 0.0, 1.0);
    texel_at = (vec2(glyph, 0.0) + corner) * cell;
    tint = paint;
    plain = glyph < 0.0 ? 1 : 0;
}
