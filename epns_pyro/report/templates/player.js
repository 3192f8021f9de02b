"use strict";
// What both players share: unpacking numbers, a canvas that is sharp on every screen, time, and its controls.
const byId = (id) => document.getElementById(id);
const role = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Base64 of deflated little-endian numbers -> typed array.
async function unpack(text, Numbers) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Numbers(await new Response(inflated).arrayBuffer());
}

class Player {
  // `draw(player)` paints the frame `player.frame` of trajectory `player.trajectory`; `keys` maps a key to what it does.
  constructor(data, draw, keys) {
    [this.sources, this.trajectories, this.frames] = data.shape;
    Object.assign(this, { data, render: draw, frame: 0, trajectory: 0, playing: false, last: 0 });
    this.canvas = byId("player").querySelector("canvas");
    this.pen = this.canvas.getContext("2d");
    byId("scrub").max = this.frames - 1;
    for (let i = 0; i < this.trajectories; i++) byId("trajectory").add(new Option(String(i + 1), String(i)));
    byId("play").addEventListener("click", () => this.play(!this.playing));
    byId("scrub").addEventListener("input", () => { this.play(false); this.seek(Number(byId("scrub").value)); });
    byId("trajectory").addEventListener("change", () => { this.trajectory = Number(byId("trajectory").value); this.draw(); });
    this.canvas.addEventListener("keydown", (event) => {
      const act = event.key === " " ? () => this.play(!this.playing) : keys[event.key];
      if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      act(this);
      this.draw();
    });
    const again = () => this.draw();
    for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", again);
    new ResizeObserver(again).observe(byId("player"));
    this.seek(Math.min(this.frames - 1, Math.round(this.frames / 4)));
  }

  seek(frame) { this.frame = Math.max(0, Math.min(this.frames - 1, frame)); this.draw(); }

  play(on) {
    if (on && this.frame === this.frames - 1) this.frame = 0;
    this.playing = on;
    byId("play").textContent = on ? "Pause" : "Play";
    byId("play").setAttribute("aria-pressed", String(on));
    if (on) requestAnimationFrame((now) => this.tick(now));
  }

  tick(now) {
    if (!this.playing) return;
    if (now - this.last > 70) {
      this.last = now;
      if (this.frame === this.frames - 1) this.play(false); else this.seek(this.frame + 1);
    }
    requestAnimationFrame((then) => this.tick(then));
  }

  // Clear the canvas, `ratio` times as high as wide; returns its size in pixels of the page.
  sheet(ratio) {
    const width = this.canvas.clientWidth, height = Math.round(width * ratio), scale = window.devicePixelRatio || 1;
    const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
    if (this.canvas.width !== w || this.canvas.height !== h) Object.assign(this.canvas, { width: w, height: h });
    this.canvas.style.height = `${height}px`;
    this.pen.setTransform(scale, 0, 0, scale, 0, 0);
    this.pen.clearRect(0, 0, width, height);
    return [width, height];
  }

  // Name a source above its picture, in the colour of its role.
  title(source, x, y, text = this.data.sources[source], align = "center") {
    Object.assign(this.pen, { globalAlpha: 1, fillStyle: role(source ? "--model" : "--ink"), font: "600 13px system-ui, sans-serif", textAlign: align });
    this.pen.fillText(text.slice(0, 40), x, y);
  }

  draw() {
    if (!this.canvas.clientWidth) return;
    this.render(this);
    byId("scrub").value = this.frame;
    byId("clock").textContent = `${Number(this.data.time[this.frame].toPrecision(4))} ${this.data.unit}`;
  }
}
