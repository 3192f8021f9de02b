// Bodies in space: truth and members side by side in one pose, or members over truth; drag or arrow keys turn.
(async () => {
  const data = JSON.parse(byId("player-data").textContent), TAIL = 28, ABSENT = 5e8;  // a body that is absent is farther than that
  const values = await unpack(data.values, Float32Array), [sources, trajectories, frames, bodies] = data.shape;
  const flat = !values.some((value, i) => i % 3 === 2 && Math.abs(value) > 0);  // bodies in a plane are seen from above
  const pose = flat ? { turn: 0, tilt: Math.PI / 2, zoom: 1 } : { turn: 0.6, tilt: 0.45, zoom: 1 };
  const start = (source, trajectory, frame, body) => (((source * trajectories + trajectory) * frames + frame) * bodies + body) * 3;
  const place = (...where) => { const at = start(...where); return values.subarray(at, at + 3); };
  const present = (point) => point.every((value) => Math.abs(value) < ABSENT);

  // Centre and reach of the true trajectory; the reach leaves out the tenth of positions that are farthest.
  const scenes = Array.from({ length: trajectories }, (_, trajectory) => {
    const points = [];
    for (let t = 0; t < frames; t += 3) for (let b = 0; b < bodies; b++) points.push(place(0, trajectory, t, b));
    const seen = points.filter(present), centre = [0, 1, 2].map((k) => seen.reduce((sum, p) => sum + p[k], 0) / (seen.length || 1));
    const far = seen.map((p) => Math.hypot(...centre.map((c, k) => p[k] - c))).sort((a, b) => a - b);
    return { centre, reach: far[Math.floor(0.9 * (far.length - 1))] * 1.25 || 1 };
  });

  // From space to the page: turn about the vertical axis, tilt towards the reader, a little perspective.
  function camera(trajectory, x0, y0, unit) {
    const { centre, reach } = scenes[trajectory], [c, s, ct, st] = [Math.cos(pose.turn), Math.sin(pose.turn), Math.cos(pose.tilt), Math.sin(pose.tilt)];
    return (x, y, z) => {
      const [px, py, pz] = [(x - centre[0]) / reach, (y - centre[1]) / reach, (z - centre[2]) / reach];
      const side = c * px - s * py, back = s * px + c * py, depth = ct * back - st * pz, near = 1 / (1 + 0.18 * Math.max(-4, Math.min(depth, 40)));
      return [x0 + unit * pose.zoom * near * side, y0 - unit * pose.zoom * near * (ct * pz + st * back), depth];
    };
  }

  function floor(pen, project, { centre, reach }) {
    Object.assign(pen, { strokeStyle: role("--axis"), lineWidth: 0.6, globalAlpha: 0.6 });
    for (const radius of [0.5, 1]) {
      pen.beginPath();
      for (let i = 0; i <= 60; i++) pen.lineTo(...project(centre[0] + radius * reach * Math.cos(i * Math.PI / 30), centre[1] + radius * reach * Math.sin(i * Math.PI / 30), centre[2]).slice(0, 2));
      pen.stroke();
    }
    pen.globalAlpha = 1;
  }

  function bodiesOf(player, source, project, strength, shrink) {
    const { pen, frame, trajectory } = player, at = (t, b) => { const point = place(source, trajectory, t, b); return present(point) ? project(...point) : null; };
    Object.assign(pen, { strokeStyle: role(source ? "--model" : "--ink"), fillStyle: role(source ? "--model" : "--ink"), lineWidth: source ? 1.2 : 1.4, lineCap: "round" });
    const order = Array.from({ length: bodies }, (_, b) => [b, at(frame, b)]).filter(([, point]) => point).sort((p, q) => q[1][2] - p[1][2]);
    for (const [b, [x, y]] of order) {
      for (let t = Math.max(1, frame - TAIL); t <= frame; t++) {
        const [from, to] = [at(t - 1, b), at(t, b)];
        if (!from || !to) continue;
        pen.globalAlpha = strength * 0.75 * (1 - (frame - t) / (TAIL + 1));
        pen.beginPath(); pen.moveTo(...from.slice(0, 2)); pen.lineTo(...to.slice(0, 2)); pen.stroke();
      }
      pen.globalAlpha = strength;
      pen.beginPath(); pen.arc(x, y, shrink * (2 + 4.5 * data.size[trajectory][b]), 0, 2 * Math.PI); pen.fill();
    }
    pen.globalAlpha = 1;
  }

  function draw(player) {
    const over = byId("view").value === "over", wide = player.canvas.clientWidth > 640;
    const columns = over ? 1 : wide ? Math.min(4, sources) : 2, rows = over ? 1 : Math.ceil(sources / columns);
    const [width, height] = player.sheet(over ? (wide ? 0.55 : 0.9) : (rows * 0.95) / columns), [w, h] = [width / columns, height / rows], { pen } = player;
    const panels = over ? [Array.from({ length: sources }, (_, i) => sources - 1 - i)] : Array.from({ length: sources }, (_, i) => [i]);
    const unit = 0.42 * Math.min(w, (over ? 1.5 : 1) * (h - 24)), shrink = Math.max(0.2, Math.min(1, unit / (14 * Math.sqrt(bodies))));  // many do not hide each other
    panels.forEach((shown, i) => {
      const [x0, y0] = [(i % columns) * w, Math.floor(i / columns) * h], project = camera(player.trajectory, x0 + w / 2, y0 + 12 + h / 2, unit);
      pen.save(); pen.beginPath(); pen.rect(x0, y0, w, h); pen.clip();
      floor(pen, project, scenes[player.trajectory]);
      for (const source of shown) bodiesOf(player, source, project, over && source ? 0.6 : 1, shrink);
      pen.restore();
      if (over) { player.title(0, 4, 16, "truth", "left"); player.title(1, 52, 16, "members", "left"); } else player.title(i, x0 + w / 2, y0 + 15);
    });
  }

  const turn = (what, by) => () => { pose[what] += by; }, zoom = (factor) => () => { pose.zoom = Math.max(0.1, Math.min(20, pose.zoom * factor)); };
  const player = new Player(data, draw, {
    ArrowLeft: turn("turn", -0.1), ArrowRight: turn("turn", 0.1), ArrowUp: turn("tilt", 0.1), ArrowDown: turn("tilt", -0.1), "+": zoom(1.15), "=": zoom(1.15), "-": zoom(1 / 1.15),
  });
  byId("view").addEventListener("change", () => player.draw());
  let grip = null;
  player.canvas.addEventListener("pointerdown", (event) => { grip = [event.clientX, event.clientY]; player.canvas.setPointerCapture(event.pointerId); });
  player.canvas.addEventListener("pointermove", (event) => {
    if (!grip) return;
    pose.turn += (event.clientX - grip[0]) / 160; pose.tilt += (event.clientY - grip[1]) / 160;
    grip = [event.clientX, event.clientY];
    player.draw();
  });
  for (const end of ["pointerup", "pointercancel"]) player.canvas.addEventListener(end, () => { grip = null; });
})();
