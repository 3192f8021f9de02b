// Films of label images: cells in the colour of their type, borders between labels, truth beside members.
(async () => {
  // Colours of Okabe and Ito, which colour-blind readers can tell apart; the medium has none.
  const PALETTE = ["#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#f0e442", "#d55e00", "#0072b2", "#999999"];
  const data = JSON.parse(byId("player-data").textContent), values = await unpack(data.values, Uint16Array);
  const [sources, trajectories, frames, high, wide] = data.shape;
  const typeOf = (trajectory, label) => { const type = data.types[trajectory][label - 1]; return type > 0 ? type : 1; };
  const colour = (type) => PALETTE[(type - 1) % PALETTE.length];

  function image(player, source, x0, y0, side) {
    const { pen, trajectory } = player, first = ((source * trajectories + trajectory) * frames + player.frame) * high * wide;
    const at = (y, x) => (y < 0 || x < 0 || y >= high || x >= wide ? 0 : values[first + y * wide + x]);
    const unit = side / wide, scale = window.devicePixelRatio || 1, snap = (v) => Math.round(v * scale) / scale;  // no seams between pixels
    pen.fillStyle = role("--paper"); pen.fillRect(x0, y0, side, high * unit);
    for (let y = 0; y < high; y++) {
      for (let x = 0, end = 0; x < wide; x = end) {  // runs of one label
        const label = at(y, x);
        for (end = x + 1; end < wide && at(y, end) === label; end++);
        if (!label) continue;
        pen.fillStyle = colour(typeOf(trajectory, label));
        const [left, top] = [snap(x0 + x * unit), snap(y0 + y * unit)];
        pen.fillRect(left, top, snap(x0 + end * unit) - left, snap(y0 + (y + 1) * unit) - top);
      }
    }
    pen.beginPath();
    for (let y = 0; y <= high; y++) for (let x = 0; x <= wide; x++) {
      const label = at(y, x), [px, py] = [x0 + x * unit, y0 + y * unit];
      if (label !== at(y - 1, x)) { pen.moveTo(px, py); pen.lineTo(px + unit, py); }
      if (label !== at(y, x - 1)) { pen.moveTo(px, py); pen.lineTo(px, py + unit); }
    }
    Object.assign(pen, { strokeStyle: "#1d2733", lineWidth: Math.max(0.8, unit / 6), lineCap: "square" });
    pen.stroke();
    Object.assign(pen, { strokeStyle: role("--line"), lineWidth: 1 });
    pen.strokeRect(x0, y0, side, high * unit);
  }

  function draw(player) {
    const width = player.canvas.clientWidth, columns = width > 640 ? Math.min(4, sources) : 2, rows = Math.ceil(sources / columns);
    const w = width / columns, side = w - 12, h = (side * high) / wide + 30;
    player.sheet((rows * h) / width);
    for (let source = 0; source < sources; source++) {
      const [x0, y0] = [(source % columns) * w, Math.floor(source / columns) * h];
      image(player, source, x0 + 6, y0 + 24, side);
      player.title(source, x0 + w / 2, y0 + 15);
    }
  }

  const types = [...new Set(data.types.flat().filter((type) => type > 0))].sort((a, b) => a - b);
  for (const type of types) {
    const entry = document.createElement("li"), swatch = document.createElement("i");
    swatch.style.background = colour(type);
    entry.append(swatch, `type ${type}`);
    byId("types").append(entry);
  }
  const step = (by) => (player) => { player.play(false); player.seek(player.frame + by); };
  new Player(data, draw, { ArrowLeft: step(-1), ArrowRight: step(1) });
})();
