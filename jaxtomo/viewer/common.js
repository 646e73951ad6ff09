// What the views share: their data, and grey or diverging pixels on a canvas.
"use strict";

async function unpack(root) {
  const about = JSON.parse(root.querySelector("[data-about]").textContent);
  if (typeof DecompressionStream === "undefined") {
    throw new Error("This browser is too old to unpack the data: use one from 2023 or later.");
  }
  const packed = Uint8Array.from(atob(root.querySelector("[data-bytes]").textContent.trim()), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return [about, new Uint8Array(await new Response(stream).arrayBuffer())];
}

// The value of 256 levels as packed pixels (red lowest in memory): grey between black and white, or blue-white-red.
function greys(black, white) {
  return Uint32Array.from({length: 256}, (_, i) => {
    const g = Math.max(0, Math.min(255, Math.round(255 * (i - black) / Math.max(white - black, 1))));
    return 0xff000000 | g << 16 | g << 8 | g;
  });
}

function diverging() {
  const stops = [[5, 48, 97], [33, 102, 172], [67, 147, 195], [146, 197, 222], [209, 229, 240], [247, 247, 247],
    [253, 219, 199], [244, 165, 130], [214, 96, 77], [178, 24, 43], [103, 0, 31]];
  return Uint32Array.from({length: 256}, (_, i) => {
    const at = i / 255 * 10, k = Math.min(9, Math.floor(at)), f = at - k;
    const [r, g, b] = stops[k].map((v, c) => Math.round(v + f * (stops[k + 1][c] - v)));
    return 0xff000000 | b << 16 | g << 8 | r;
  });
}

// A picture of w by h levels, `level(column, row)` with row 0 at the bottom.
function picture(w, h, colours, level) {
  const canvas = document.createElement("canvas");
  canvas.width = w; canvas.height = h;
  const context = canvas.getContext("2d"), image = context.createImageData(w, h);
  const pixels = new Uint32Array(image.data.buffer);
  for (let j = 0, k = 0; j < h; j++) for (let i = 0; i < w; i++) pixels[k++] = colours[level(i, h - 1 - j)];
  context.putImageData(image, 0, 0);
  return canvas;
}

// Makes the canvas as sharp as the screen; true if its size changed.
function fit(canvas, scale = 1) {
  const box = canvas.getBoundingClientRect(), ratio = Math.min(devicePixelRatio || 1, 2) * scale;
  const w = Math.max(1, Math.round(box.width * ratio)), h = Math.max(1, Math.round(box.height * ratio));
  if (canvas.width === w && canvas.height === h) return false;
  canvas.width = w; canvas.height = h;
  return true;
}

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const rounded = value => String(Number(value.toPrecision(3)));
