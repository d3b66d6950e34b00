// One triangle over the whole viewport. at: (0, 0) is the picture's top left corner, (1, 1) its
// bottom right one. `up` is 1 when drawing on a surface (whose rows run upwards) and 0 when
// drawing into a texture (whose first row is the picture's top, as uploaded).
uniform float up;
out vec2 at;

void main() {
    vec2 corner = vec2((gl_VertexID << 1) & 2, gl_VertexID & 2);
    at = vec2(corner.x, mix(corner.y, 1.0 - corner.y, up));
    gl_Position = vec4(corner * 2.0 - 1.0, 0.0, 1.0);
}
