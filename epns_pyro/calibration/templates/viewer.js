// Two small viewers on a canvas: bodies in space that can be turned and played, and films of label images.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const root = document.getElementById("viewer"), canvas = root.querySelector("canvas"), pen = canvas.getContext("2d");
  const button = root.querySelector("button"), slider = root.querySelector("input"), clock = root.querySelector("output"), choice = root.querySelector("select");
  const bytes = Uint8Array.from(atob(data.values), (c) => c.charCodeAt(0));
  const values = data.kind === "orbits" ? new Float32Array(bytes.buffer) : new Uint16Array(bytes.buffer);
  const [sources, trajectories, frames] = data.shape;
  const state = { frame: 0, trajectory: 0, turn: 0.6, tilt: 0.5, zoom: 1, playing: false };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  slider.max = frames - 1;
  for (let i = 0; i < trajectories; i++) choice.add(new Option(String(i + 1), String(i)));

  function size(ratio) {
    const width = canvas.clientWidth, height = Math.round(width * ratio), scale = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale); canvas.height = Math.round(height * scale); canvas.style.height = height + "px";
    }
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    return [width, height];
  }

  function orbits() {
    const [, , , bodies] = data.shape, columns = canvas.clientWidth > 640 ? 4 : 2, rows = Math.ceil(sources / columns);
    const [width, height] = size(columns === 4 ? 0.3 : 1.05);
    const w = width / columns, h = height / rows, at = (s, t, b, k) => values[(((s * trajectories + state.trajectory) * frames + t) * bodies + b) * 3 + k];
    const distances = [];
    for (let t = 0; t < frames; t += 4) for (let b = 0; b < bodies; b++) distances.push(Math.hypot(at(0, t, b, 0), at(0, t, b, 1), at(0, t, b, 2)));
    const reach = distances.sort((a, b) => a - b)[Math.floor(0.9 * (distances.length - 1))];
    const zoom = (0.42 * Math.min(w, h - 20) * state.zoom) / (reach || 1), [c, s] = [Math.cos(state.turn), Math.sin(state.turn)], [ct, st] = [Math.cos(state.tilt), Math.sin(state.tilt)];
    for (let source = 0; source < sources; source++) {
      const x0 = (source % columns) * w, y0 = Math.floor(source / columns) * h;
      pen.save(); pen.beginPath(); pen.rect(x0, y0, w, h); pen.clip();
      const project = (t, b) => {
        const [x, y, z] = [at(source, t, b, 0), at(source, t, b, 1), at(source, t, b, 2)], u = c * x - s * y, v = s * x + c * y;
        return [x0 + w / 2 + zoom * u, y0 + 10 + h / 2 - zoom * (ct * z + st * v)];
      };
      for (let b = 0; b < bodies; b++) {
        const mass = data.size[state.trajectory][b], colour = source === 0 ? css("--ink") : css("--model");
        pen.strokeStyle = colour; pen.lineWidth = 1; 
        for (let t = Math.max(1, state.frame - 25); t <= state.frame; t++) {
          pen.globalAlpha = 0.65 * (1 - (state.frame - t) / 26); pen.beginPath(); pen.moveTo(...project(t - 1, b)); pen.lineTo(...project(t, b)); pen.stroke();
        }
        pen.globalAlpha = 1; pen.fillStyle = colour; pen.beginPath();
        pen.arc(...project(state.frame, b), 2 + 1.6 * Math.cbrt(Math.max(mass, 0)), 0, 2 * Math.PI); pen.fill();
      }
      pen.restore(); title(source, x0, y0, w);
    }
  }

  // Okabe and Ito's colours, which colour-blind readers can tell apart.
  const palette = [[0, 0, 0, 0], [230, 159, 0, 255], [86, 180, 233, 255], [0, 158, 115, 255], [204, 121, 167, 255], [240, 228, 66, 255], [213, 94, 0, 255], [0, 114, 178, 255]];
  function film() {
    const [, , , high, wide] = data.shape, columns = canvas.clientWidth > 640 ? 4 : 2, rows = Math.ceil(sources / columns), fine = 4;
    const w = canvas.clientWidth / columns, cell = w - 8;
    size((rows * ((cell * high) / wide + 24)) / canvas.clientWidth);
    for (let source = 0; source < sources; source++) {
      const image = new ImageData(wide * fine, high * fine), start = ((source * trajectories + state.trajectory) * frames + state.frame) * high * wide;
      const at = (y, x) => (y < 0 || x < 0 || y >= high || x >= wide ? 0 : values[start + y * wide + x]);
      for (let y = 0; y < high; y++) for (let x = 0; x < wide; x++) {
        const label = at(y, x), colour = label ? palette[data.types[state.trajectory][label - 1] % palette.length] : palette[0];
        for (let j = 0; j < fine; j++) for (let i = 0; i < fine; i++) {
          const border = label && ((j === 0 && at(y - 1, x) !== label) || (i === 0 && at(y, x - 1) !== label) || (j === fine - 1 && !at(y + 1, x)) || (i === fine - 1 && !at(y, x + 1)));
          const k = 4 * ((y * fine + j) * wide * fine + x * fine + i);
          for (let m = 0; m < 4; m++) image.data[k + m] = border ? [40, 40, 40, 255][m] : colour[m];
        }
      }
      const buffer = document.createElement("canvas"); buffer.width = wide * fine; buffer.height = high * fine; buffer.getContext("2d").putImageData(image, 0, 0);
      const x0 = (source % columns) * w, y0 = Math.floor(source / columns) * ((cell * high) / wide + 24);
      pen.imageSmoothingEnabled = false; pen.drawImage(buffer, x0 + 4, y0 + 20, cell, (cell * high) / wide); title(source, x0, y0, w);
    }
  }

  function title(source, x, y, w) {
    pen.globalAlpha = 1; pen.fillStyle = source === 0 ? css("--ink") : css("--model"); pen.font = "600 13px system-ui, sans-serif"; pen.textAlign = "center";
    pen.fillText(data.sources[source], x + w / 2, y + 14);
  }

  function draw() {
    (data.kind === "orbits" ? orbits : film)();
    slider.value = state.frame; clock.textContent = `${data.time[state.frame].toPrecision(3)} ${data.unit}`;
  }
  function play(on) { state.playing = on; button.textContent = on ? "pause" : "play"; if (on) requestAnimationFrame(tick); }
  let last = 0;
  function tick(now) {
    if (!state.playing) return;
    if (now - last > 60) { last = now; state.frame = (state.frame + 1) % frames; draw(); }
    requestAnimationFrame(tick);
  }
  button.addEventListener("click", () => play(!state.playing));
  slider.addEventListener("input", () => { play(false); state.frame = Number(slider.value); draw(); });
  choice.addEventListener("change", () => { state.trajectory = Number(choice.value); draw(); });
  const keys = { ArrowLeft: ["turn", -0.1], ArrowRight: ["turn", 0.1], ArrowUp: ["tilt", 0.1], ArrowDown: ["tilt", -0.1], "+": ["zoom", 0.1], "-": ["zoom", -0.1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.key === " ") play(!state.playing);
    else if (keys[event.key]) { const [what, by] = keys[event.key]; state[what] = what === "zoom" ? Math.max(0.2, state.zoom + by) : state[what] + by; draw(); }
    else return;
    event.preventDefault();
  });
  let grip = null;
  canvas.addEventListener("pointerdown", (event) => { grip = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => {
    if (!grip) return;
    state.turn += (event.clientX - grip[0]) / 150; state.tilt += (event.clientY - grip[1]) / 150; grip = [event.clientX, event.clientY]; draw();
  });
  canvas.addEventListener("pointerup", () => { grip = null; });
  window.addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  state.frame = Math.min(frames - 1, 30);
  draw();
})();
