// A volume as three linked slices, a grey window and a ray-cast view that the mouse and the arrow keys turn.
"use strict";

async function showVolume(root) {
  const part = name => root.querySelector(`[data-${name}]`), notice = part("notice");
  let about, bytes;
  try { [about, bytes] = await unpack(root); } catch (error) { notice.textContent = error.message; return; }
  notice.textContent = "";

  const axes = ["z", "y", "x"], count = {}, size = {}, stride = {}, at = {};
  axes.forEach((a, k) => {
    count[a] = about.shape[k];
    size[a] = about.size[k];
    stride[a] = about.shape.slice(k + 1).reduce((p, n) => p * n, 1);
    at[a] = clamp(Math.floor(about.at[k] * count[a] / size[a]), 0, count[a] - 1);
  });
  const tint = {x: "#e8804a", y: "#57c08a", z: "#5aa9e6"};
  const counts = new Float64Array(256);
  for (const b of bytes) counts[b]++;
  const view = {
    turn: turned(turned([1, 0, 0, 0, 1, 0, 0, 0, 1], "y", -0.6), "x", 0.35), zoom: 1.2, cut: 1,
    black: 0, white: 255, surface: true, threshold: otsu(counts)
  };
  const start = {...view};

  // Slices ------------------------------------------------------------------------------------------------------
  const names = [["xy", "x", "y", "z"], ["zy", "z", "y", "x"], ["xz", "x", "z", "y"]];
  const planes = names.map(([name, right, up, through]) => {
    const canvas = root.querySelector(`[data-plane="${name}"]`);
    canvas.addEventListener("pointerdown", event => { canvas.setPointerCapture(event.pointerId); move(event); });
    canvas.addEventListener("pointermove", event => { if (event.buttons & 1) move(event); });
    canvas.addEventListener("wheel", event => {
      if (document.activeElement !== canvas) return;  // otherwise the wheel scrolls the page
      event.preventDefault();
      go({[through]: at[through] + Math.sign(event.deltaY)});
    }, {passive: false});
    canvas.addEventListener("keydown", event => {
      const step = {ArrowLeft: [right, -1], ArrowRight: [right, 1], ArrowUp: [up, 1], ArrowDown: [up, -1],
        PageUp: [through, 1], PageDown: [through, -1]}[event.key];
      if (step) { event.preventDefault(); go({[step[0]]: at[step[0]] + step[1]}); }
    });
    // One scale for all planes, so that they can be compared.
    const box = () => {
      const scale = Math.min(canvas.width, canvas.height) / Math.max(...about.size);
      const w = Math.max(size[right] * scale, 2), h = Math.max(size[up] * scale, 2);
      return [(canvas.width - w) / 2, (canvas.height - h) / 2, w, h];
    };
    const move = event => {
      const place = canvas.getBoundingClientRect(), [left, top, w, h] = box(), ratio = canvas.width / place.width;
      const i = ((event.clientX - place.left) * ratio - left) / w;
      const j = 1 - ((event.clientY - place.top) * ratio - top) / h;
      go({[right]: Math.floor(i * count[right]), [up]: Math.floor(j * count[up])});
    };
    const draw = () => {
      fit(canvas);
      const context = canvas.getContext("2d"), [left, top, w, h] = box(), base = at[through] * stride[through];
      const image = picture(count[right], count[up], greys(view.black, view.white),
        (i, j) => bytes[base + i * stride[right] + j * stride[up]]);
      context.fillStyle = "#0c0e11";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.imageSmoothingQuality = "high";
      context.drawImage(image, left, top, w, h);
      const x = left + (at[right] + 0.5) / count[right] * w, y = top + (1 - (at[up] + 0.5) / count[up]) * h;
      const gap = canvas.width / 32;
      const line = (axis, ...ends) => {
        context.strokeStyle = tint[axis];
        context.lineWidth = canvas.width / canvas.clientWidth;
        context.beginPath();
        for (const [x0, y0, x1, y1] of ends) { context.moveTo(x0, y0); context.lineTo(x1, y1); }
        context.stroke();
      };
      line(right, [x, top, x, y - gap], [x, y + gap, x, top + h]);
      line(up, [left, y, x - gap, y], [x + gap, y, left + w, y]);
    };
    return draw;
  });

  const whole = axis => Math.floor(at[axis] * size[axis] / count[axis]);  // in voxels of the unbinned volume
  const value = level => about.low + level / 255 * (about.high - about.low);
  const go = to => {
    for (const a in to) at[a] = clamp(to[a], 0, count[a] - 1);
    view.cut = part("cut").checked ? (at.z + 1) / count.z : 1;
    update("z" in to && part("cut").checked);
  };

  const histogram = part("histogram");
  const drawHistogram = () => {
    fit(histogram);
    const context = histogram.getContext("2d"), {width, height} = histogram, top = Math.log1p(Math.max(...counts));
    context.clearRect(0, 0, width, height);
    context.fillStyle = getComputedStyle(root).getPropertyValue("--muted");
    counts.forEach((n, i) => {
      const h = Math.log1p(n) / top * height;
      context.globalAlpha = i >= view.black && i <= view.white ? 1 : 0.3;
      context.fillRect(i / 256 * width, height - h, width / 256 + 0.5, h);
    });
    context.globalAlpha = 1;
    context.fillStyle = tint.x;
    if (view.surface && cast) context.fillRect(view.threshold / 255 * width - 1, 0, 2, height);
  };

  // The ray-cast view -------------------------------------------------------------------------------------------
  const canvas = part("cast"), frame = part("frame"), norm = Math.hypot(size.x, size.y, size.z);
  const reach = [size.x / norm, size.y / norm, size.z / norm];
  const cast = raycaster(canvas, bytes, about.shape, reach);
  let coarse = 0.4, waiting = 0, settling = 0, last = 0, before = false, dragged = false;
  const render = moving => {
    fit(canvas, moving ? coarse : 1);
    cast({...view, skip: moving ? 1.6 : 1});
    const now = performance.now();
    if (moving && before) coarse = clamp(coarse * clamp(Math.sqrt(40 / (now - last)), 0.5, 1.1), 0.12, 1);
    last = now;  // a slow machine gets fewer pixels while the view turns, and all of them when it rests
    before = moving;
    drawFrame();
  };
  const turn3d = () => {
    if (!cast) return;
    if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; render(true); });
    rest();
  };
  const rest = () => {
    clearTimeout(settling);
    if (!dragged) settling = setTimeout(() => render(false), 250);
  };
  const drawFrame = () => {
    fit(frame);
    const context = frame.getContext("2d"), {width, height} = frame, scale = Math.min(width, height) / 2 * view.zoom;
    const ratio = width / frame.clientWidth;
    const place = p => [0, 1].map(k => [0, 1, 2].reduce((s, c) => s + view.turn[3 * k + c] * p[c] * reach[c], 0))
      .map((v, k) => k ? height / 2 - v * scale : width / 2 + v * scale);
    context.clearRect(0, 0, width, height);
    context.lineWidth = ratio;
    context.font = `${12 * ratio}px system-ui, sans-serif`;
    context.textAlign = "center";
    ["x", "y", "z"].forEach((axis, k) => {
      for (const [i, j] of [[-1, -1], [1, -1], [-1, 1], [1, 1]]) {
        const from = [i, j], to = [i, j];
        from.splice(k, 0, -1);
        to.splice(k, 0, 1);
        const named = i === -1 && j === -1;
        context.strokeStyle = named ? tint[axis] : "rgba(160, 170, 180, 0.35)";
        context.beginPath();
        context.moveTo(...place(from));
        context.lineTo(...place(to));
        context.stroke();
        if (!named) continue;
        to[k] = 1.09;
        context.fillStyle = tint[axis];
        const name = {x: "x", y: "y, tilt axis", z: "z, beam"}[axis], [x, y] = place(to);
        const half = context.measureText(name).width / 2 + 6 * ratio;  // never outside the frame
        context.fillText(name, clamp(x, half, width - half), clamp(y, 16 * ratio, height - 8 * ratio));
      }
    });
  };
  const rotate = (x, y) => { view.turn = turned(turned(view.turn, "y", x), "x", y); turn3d(); };
  if (cast) {
    canvas.addEventListener("pointerdown", event => { canvas.setPointerCapture(event.pointerId); dragged = true; });
    canvas.addEventListener("lostpointercapture", () => { dragged = false; rest(); });
    canvas.addEventListener("pointermove", event => {
      if (event.buttons & 1) rotate(event.movementX * 0.009, event.movementY * 0.009);
    });
    canvas.addEventListener("wheel", event => {
      if (document.activeElement !== canvas) return;
      event.preventDefault();
      view.zoom = clamp(view.zoom * Math.exp(-event.deltaY * 0.001), 0.5, 8);
      turn3d();
    }, {passive: false});
    canvas.addEventListener("keydown", event => {
      const step = {ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1]}[event.key];
      const zoom = {"+": 1.15, "=": 1.15, "-": 1 / 1.15}[event.key];
      if (!step && !zoom) return;
      event.preventDefault();
      view.zoom = clamp(view.zoom * (zoom || 1), 0.5, 8);
      rotate(...(step || [0, 0]));
    });
    canvas.addEventListener("webglcontextlost", () => {
      notice.textContent = "The graphics card gave up: reload the page.";
    });
  } else {
    part("cast-controls").hidden = part("reset").hidden = true;
    notice.textContent = "No WebGL2 here: shown is the maximum along the beam.";
    canvas.removeAttribute("tabindex");
  }
  const projection = () => {  // what is left without WebGL2
    const best = new Uint8Array(count.x * count.y);
    bytes.forEach((b, k) => { const p = k % best.length; if (b > best[p]) best[p] = b; });
    fit(frame);
    const image = picture(count.x, count.y, greys(view.black, view.white), (i, j) => best[i + j * count.x]);
    const {width, height} = frame, scale = Math.min(width / size.x, height / size.y);
    const w = size.x * scale, h = size.y * scale;
    frame.getContext("2d").drawImage(image, (width - w) / 2, (height - h) / 2, w, h);
  };

  // Controls ----------------------------------------------------------------------------------------------------
  const update = (and3d = true) => {
    planes.forEach(draw => draw());
    drawHistogram();
    for (const a of axes) {
      root.querySelector(`[data-at="${a}"]`).value = at[a];
      root.querySelector(`[data-at-value="${a}"]`).textContent = whole(a);
    }
    for (const name of ["black", "white", "threshold"]) {
      part(name).value = view[name];
      part(`${name}-value`).textContent = rounded(value(view[name]));
    }
    part("threshold-label").style.visibility = view.surface ? "" : "hidden";
    const level = bytes[at.z * stride.z + at.y * stride.y + at.x];
    part("readout").textContent = `value ${rounded(value(level))}` + (about.voxel ?
      ` · ${["x", "y", "z"].map(a => `${a} ${rounded(whole(a) * about.voxel)}`).join(", ")} nm` : "");
    if (and3d) { if (cast) turn3d(); else projection(); }
  };
  for (const a of axes) {
    const slider = root.querySelector(`[data-at="${a}"]`);
    slider.max = count[a] - 1;
    slider.disabled = count[a] < 2;
    slider.addEventListener("input", () => go({[a]: Number(slider.value)}));
  }
  for (const name of ["black", "white", "threshold"]) part(name).addEventListener("input", event => {
    view[name] = Number(event.target.value);
    if (name === "black") view.white = Math.max(view.white, view.black + 1);
    if (name === "white") view.black = Math.min(view.black, view.white - 1);
    update();
  });
  for (const radio of root.querySelectorAll("[name=mode]")) radio.addEventListener("change", () => {
    view.surface = radio.value === "surface";
    update();
  });
  part("cut").addEventListener("change", () => { go({}); update(); });
  part("reset").addEventListener("click", () => {
    Object.assign(view, {turn: start.turn, zoom: start.zoom});
    turn3d();
  });
  new ResizeObserver(() => { update(false); if (cast) render(false); else projection(); }).observe(root);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawHistogram);
  update();
}

// The rotation (three rows) after a further turn about an axis of the screen.
function turned(rows, axis, angle) {
  const c = Math.cos(angle), s = Math.sin(angle);
  const by = axis === "y" ? [c, 0, s, 0, 1, 0, -s, 0, c] : [1, 0, 0, 0, c, -s, 0, s, c];
  return rows.map((_, k) => [0, 1, 2].reduce((sum, m) => sum + by[3 * Math.floor(k / 3) + m] * rows[3 * m + k % 3], 0));
}

// The level that parts the counts into two classes with the largest variance between them [Otsu 1979].
function otsu(counts) {
  let total = 0, sum = 0, below = 0, sumBelow = 0, best = -1, first = 127, last = 127;
  counts.forEach((n, i) => { total += n; sum += n * i; });
  counts.forEach((n, i) => {
    below += n;
    sumBelow += n * i;
    if (!below || below === total) return;
    const spread = below * (total - below) * (sumBelow / below - (sum - sumBelow) / (total - below)) ** 2;
    if (spread > best * (1 + 1e-9)) { best = spread; first = i; }
    if (spread >= best * (1 - 1e-9)) last = i;
  });
  return clamp(Math.round((first + last + 1) / 2), 1, 254);  // the middle, where empty levels leave it open
}

document.querySelectorAll("[data-volume]").forEach(showVolume);
