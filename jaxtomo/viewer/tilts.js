// One tilt at a time: measured, predicted and what is left, chosen by a slider or by a click on the chart above.
"use strict";

async function showTilts(root) {
  const part = name => root.querySelector(`[data-${name}]`);
  let about, bytes;
  try { [about, bytes] = await unpack(root); } catch (error) { part("notice").textContent = error.message; return; }
  const [tilts, h, w] = about.shape, slider = part("tilt"), cursor = document.getElementById("tilt-cursor");
  const {low, high, reach} = about, grey = greys(0, 255), twoColours = diverging();
  part("reach").textContent = `blue −${rounded(reach)} to red +${rounded(reach)}`;

  const show = () => {
    const k = Number(slider.value), from = 2 * k * w * h, left = from + w * h;
    const residual = i => (bytes[left + i] / 255 * 2 - 1) * reach;
    const predicted = i => clamp(Math.round(bytes[from + i] - residual(i) / (high - low || 1) * 255), 0, 255);
    for (const [name, colours, level] of [["measured", grey, i => bytes[from + i]], ["predicted", grey, predicted],
      ["residual", twoColours, i => bytes[left + i]]]) {
      const canvas = root.querySelector(`[data-image="${name}"]`), context = canvas.getContext("2d");
      canvas.style.aspectRatio = `${about.size[1]} / ${about.size[0]}`;
      fit(canvas);
      context.imageSmoothingQuality = "high";
      context.drawImage(picture(w, h, colours, (i, j) => level(i + j * w)), 0, 0, canvas.width, canvas.height);
    }
    part("tilt-value").textContent = about.facts[k];
    slider.setAttribute("aria-valuetext", about.facts[k]);
    if (cursor) cursor.setAttribute("transform", `translate(${about.cursor[k]} 0)`);
  };
  slider.addEventListener("input", show);
  const chart = cursor && cursor.ownerSVGElement;
  if (chart) chart.addEventListener("click", event => {
    const zero = cursor.getBBox().x, toChart = chart.getScreenCTM().inverse();
    const x = new DOMPoint(event.clientX, event.clientY).matrixTransform(toChart).x;
    const distance = about.cursor.map(c => Math.abs(zero + c - x));
    slider.value = distance.indexOf(Math.min(...distance));
    show();
  });
  new ResizeObserver(show).observe(root);
  show();
}

document.querySelectorAll("[data-tilts]").forEach(showTilts);
