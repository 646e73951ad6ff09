// Casts one ray a pixel through a volume on the GPU: the maximum along it, or the first surface above a threshold.
"use strict";

const RAYS = `#version 300 es
precision highp float; precision highp sampler3D;
uniform sampler3D volume;
uniform mat3 turn;              // from the screen to the volume
uniform vec3 reach, low, high;  // half the box; the part of it that is shown
uniform vec2 pixels, grey;      // size of the canvas; black and white
uniform float zoom, threshold, stride;
uniform bool surface;
out vec4 colour;

float level(vec3 p) { return texture(volume, p / (2.0 * reach) + 0.5).r; }
vec3 shade(float v) { return vec3(clamp((v - grey.x) / max(grey.y - grey.x, 1e-3), 0.0, 1.0)); }

void main() {
  vec2 at = (2.0 * gl_FragCoord.xy - pixels) / min(pixels.x, pixels.y) / zoom;
  vec3 ray = turn * vec3(0.0, 0.0, -1.0), start = turn * vec3(at, 2.0);
  ray += vec3(equal(ray, vec3(0.0))) * 1e-6;
  vec3 a = (low - start) / ray, b = (high - start) / ray, near = min(a, b), far = max(a, b);
  float t = max(max(near.x, near.y), near.z), end = min(min(far.x, far.y), far.z);
  colour = vec4(0.047, 0.055, 0.067, 1.0);
  if (t >= end) return;
  float first = level(start + ray * (t + 1e-4)), best = first;
  if (surface && first >= threshold) { colour = vec4(shade(first), 1.0); return; }  // a cut face shows the grey values
  for (int i = 0; i < 1024; i++) {
    t += stride;
    if (t > end) break;
    float here = level(start + ray * t);
    best = max(best, here);
    if (!surface || here < threshold) continue;
    float before = t - stride;
    for (int k = 0; k < 5; k++) {
      float middle = 0.5 * (before + t);
      if (level(start + ray * middle) < threshold) before = middle; else t = middle;
    }
    vec3 p = start + ray * t, h = 2.0 * reach / vec3(textureSize(volume, 0));
    vec3 slope = vec3(level(p + vec3(h.x, 0, 0)) - level(p - vec3(h.x, 0, 0)),
      level(p + vec3(0, h.y, 0)) - level(p - vec3(0, h.y, 0)),
      level(p + vec3(0, 0, h.z)) - level(p - vec3(0, 0, h.z))) / h;
    vec3 normal = -slope / max(length(slope), 1e-6), light = turn * normalize(vec3(-0.45, 0.6, 0.75));
    float facing = max(dot(normal, light), 0.0), back = max(dot(normal, -ray), 0.0);
    float shine = pow(max(dot(reflect(-light, normal), -ray), 0.0), 24.0);
    float depth = clamp(1.15 - 0.22 * (t - 1.0), 0.45, 1.0);
    colour = vec4((vec3(0.16, 0.17, 0.19) + vec3(0.56, 0.55, 0.52) * facing + vec3(0.16, 0.17, 0.19) * back) * depth
      + 0.14 * shine, 1.0);
    return;
  }
  if (!surface) colour = vec4(max(shade(best), colour.rgb), 1.0);
}`;

// Returns draw(view), or null where there is no WebGL2.
function raycaster(canvas, bytes, [nz, ny, nx], reach) {
  const gl = canvas.getContext("webgl2", {preserveDrawingBuffer: true, antialias: false});
  if (!gl || Math.max(nx, ny, nz) > gl.getParameter(gl.MAX_3D_TEXTURE_SIZE)) return null;
  const program = gl.createProgram();
  const vertices = `#version 300 es
    void main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0, 1); }`;
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertices], [gl.FRAGMENT_SHADER, RAYS]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return null;
  gl.useProgram(program);
  gl.bindTexture(gl.TEXTURE_3D, gl.createTexture());
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  gl.texImage3D(gl.TEXTURE_3D, 0, gl.R8, nx, ny, nz, 0, gl.RED, gl.UNSIGNED_BYTE, bytes);
  const set = (names, value) => names.forEach(name => gl.texParameteri(gl.TEXTURE_3D, name, value));
  set([gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T, gl.TEXTURE_WRAP_R], gl.CLAMP_TO_EDGE);
  set([gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER], gl.LINEAR);
  const at = name => gl.getUniformLocation(program, name);
  const stride = 0.6 * Math.min(...[nx, ny, nz].map((n, i) => 2 * reach[i] / n));
  return view => {
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.uniformMatrix3fv(at("turn"), false, view.turn);  // rows of the rotation are columns of its inverse
    gl.uniform3fv(at("reach"), reach);
    gl.uniform3fv(at("low"), reach.map(r => -r));
    gl.uniform3fv(at("high"), [reach[0], reach[1], reach[2] * (2 * view.cut - 1)]);
    gl.uniform2f(at("pixels"), canvas.width, canvas.height);
    gl.uniform2f(at("grey"), view.black / 255, view.white / 255);
    gl.uniform1f(at("zoom"), view.zoom);
    gl.uniform1f(at("threshold"), view.threshold / 255);
    gl.uniform1f(at("stride"), stride * view.skip);
    gl.uniform1i(at("surface"), view.surface ? 1 : 0);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  };
}
