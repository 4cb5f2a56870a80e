/* The figures of the report, from the data in this file. */
(function () {
  const D = JSON.parse(document.getElementById("payload").textContent);
  const state = { hidden: new Set(), point: D.points.length > 1 && D.series.length > 8 ? 0 : null, log: false };
  const figures = [];
  const inPoint = (s) => state.point === null || s.points.includes(state.point);
  const visible = () => D.series.map((s, i) => i).filter((i) => inPoint(D.series[i]) && !state.hidden.has(D.series[i].label));
  const redrawAll = () => figures.forEach((figure) => figure.redraw());
  const label = (s) => state.point === null ? s.label : s.policy;

  function seriesLegend(figure) {
    figure.setLegend(D.series.filter(inPoint).map((s) => ({
      label: label(s), swatch: lineSwatch(color(s), dash(s)), on: !state.hidden.has(s.label),
      toggle: () => { state.hidden.has(s.label) ? state.hidden.delete(s.label) : state.hidden.add(s.label); redrawAll(); },
    })));
  }
  function add(id, height, draw) {
    const host = document.getElementById(id);
    if (!host) return null;
    const figure = new Figure(host, height, draw);
    figures.push(figure);
    return figure;
  }
  function quantile(cdf, q) {
    const i = cdf.y.findIndex((y) => y >= q - 1e-9);
    return cdf.x.length ? cdf.x[i < 0 ? cdf.x.length - 1 : i] : null;
  }

  /* Latency distribution */
  const cdf = add("cdf", 320, (figure, root, W, H) => {
    seriesLegend(figure);
    const shown = visible(), m = { l: 44, r: 12, t: 18, b: 42 };
    const values = shown.flatMap((i) => D.cdf[i].x);
    if (!values.length) return;
    const high = Math.max(...values, D.deadline_ms || 0) * 1.03, least = Math.max(1e-3, Math.min(...values));
    const x = state.log ? scale(least * 0.9, high, m.l, W - m.r, true) : scale(0, high, m.l, W - m.r);
    const y = scale(0, 1, H - m.b, m.t);
    axisY(root, y, m.l, W - m.r, { format: (v) => Math.round(v * 100) + "%" });
    axisX(root, x, H - m.b, { label: "latency", format: msTick, count: W < 420 ? 4 : 6 });
    if (D.deadline_ms) {
      const at = x(D.deadline_ms);
      root.append(svg("line", { class: "mark", x1: at, x2: at, y1: m.t, y2: H - m.b }),
        svg("text", { x: at > W - 80 ? at - 4 : at + 4, y: m.t - 6, "text-anchor": at > W - 80 ? "end" : "start" }, "deadline"));
    }
    for (const i of shown) {
      const c = D.cdf[i], s = D.series[i];
      let path = `M${x(Math.max(x.low, c.x[0]))},${y(0)}`;
      c.x.forEach((v, k) => { path += `H${x(v).toFixed(1)}V${y(c.y[k]).toFixed(1)}`; });
      root.append(svg("path", { d: path, fill: "none", style: `stroke:${color(s)}`, "stroke-width": 2.2, "stroke-dasharray": dash(s), "stroke-linejoin": "round" }));
    }
    const cross = svg("line", { class: "cross", x1: m.l, x2: W - m.r, visibility: "hidden" });
    const dots = svg("g");
    const area = svg("rect", { x: m.l, y: m.t - 4, width: W - m.l - m.r, height: H - m.t - m.b + 8, fill: "transparent" });
    root.append(cross, dots, area);
    area.addEventListener("pointermove", (event) => {
      const top = root.getBoundingClientRect().top, q = Math.min(1, Math.max(0.01, y.invert(event.clientY - top)));
      cross.setAttribute("y1", y(q)); cross.setAttribute("y2", y(q)); cross.setAttribute("visibility", "visible");
      const rows = shown.map((i) => ({ name: label(D.series[i]), color: color(D.series[i]), ms: quantile(D.cdf[i], q) }));
      dots.replaceChildren(...rows.map((r) => svg("circle", { cx: x(r.ms), cy: y(q), r: 4, style: `fill:${r.color}` })));
      figure.show(event, `p${(q * 100).toFixed(q > 0.985 ? 1 : 0)}`, rows.sort((a, b) => a.ms - b.ms).map((r) => ({ ...r, value: msText(r.ms) })));
    });
    area.addEventListener("pointerleave", () => { cross.setAttribute("visibility", "hidden"); dots.replaceChildren(); figure.hide(); });
  });
  if (cdf) {
    const button = el("button", { type: "button", "aria-pressed": "false", onclick: () => {
      state.log = !state.log; button.setAttribute("aria-pressed", String(state.log)); cdf.redraw(); } }, "logarithmic axis");
    cdf.addTool(button);
  }

  /* Horizontal stacked bars; used for the breakdown and for exits */
  function hatches(root, roles) {
    const defs = svg("defs");
    for (const role of roles) {
      defs.append(svg("pattern", { id: `hatch-${role}`, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        svg("rect", { width: 6, height: 6, style: `fill:var(--${role});opacity:.28` }), svg("rect", { width: 2.6, height: 6, style: `fill:var(--${role})` })));
    }
    root.append(defs);
  }
  function labelAbove(root, text, s, x, y, right, rightText) {
    root.append(svg("circle", { cx: x + 5, cy: y - 4, r: 5, style: `fill:${color(s)}` }), svg("text", { class: "strong", x: x + 16, y }, text),
      svg("text", { x: right, y, "text-anchor": "end" }, rightText));
  }
  const partsHidden = new Set();
  add("breakdown", () => 54 * Math.max(1, D.series.filter(inPoint).filter((s) => !state.hidden.has(s.label)).length) + 34, (figure, root, W, H) => {
    const shown = visible(), sum = (i) => D.breakdown[i].reduce((a, b) => a + b, 0);
    const used = D.components.map((c, k) => k).filter((k) => shown.some((i) => D.breakdown[i][k] > 0.01 * sum(i)));
    hatches(root, [...new Set(D.components.map((c) => c.role))]);
    const fill = (c) => c.hatch ? `url(#hatch-${c.role})` : `var(--${c.role})`;
    figure.setLegend(used.map((k) => ({
      label: D.components[k].name, on: !partsHidden.has(k), swatch: boxSwatch(fill(D.components[k])),
      toggle: () => { partsHidden.has(k) ? partsHidden.delete(k) : partsHidden.add(k); figure.redraw(); },
    })));
    const total = (i) => D.breakdown[i].reduce((sum, v, k) => sum + (partsHidden.has(k) ? 0 : v), 0);
    const x = scale(0, Math.max(1e-6, ...shown.map(total)) * 1.02, 0, W);
    axisX(root, x, H - 30, { format: msTick, count: W < 420 ? 4 : 6, top: 4 });
    shown.forEach((i, row) => {
      const s = D.series[i], top = row * 54 + 22;
      labelAbove(root, label(s), s, 0, top - 5, W, msText(total(i)));
      let at = 0;
      D.components.forEach((c, k) => {
        const ms = D.breakdown[i][k];
        if (ms <= 0 || partsHidden.has(k)) return;
        const w = Math.max(0.4, x(at + ms) - x(at)), bar = svg("rect", { x: x(at), y: top, width: Math.max(0.4, w - (w > 4 ? 1 : 0)), height: 22, rx: w > 8 ? 3 : 0, style: `fill:${fill(c)}` });
        bar.addEventListener("pointermove", (event) => figure.show(event, label(s), D.components.map((d, j) => ({ d, v: D.breakdown[i][j], j })).filter((r) => r.v > 0.005)
          .map((r) => ({ name: r.d.name, color: `var(--${r.d.role})`, low: r.j !== k, value: `${msText(r.v)}  ${percent(r.v / sum(i))}` }))));
        bar.addEventListener("pointerleave", () => figure.hide());
        root.append(bar);
        at += ms;
      });
    });
  });

  add("exits", () => 70 * Math.max(1, visible().length) + 30, (figure, root, W, H) => {
    const names = D.exits.names, tint = (k) => ["var(--t1)", "var(--u0)", "var(--t0)", "var(--t2)", "var(--d)", "var(--t3)"][k % 6];
    figure.setLegend(names.map((name, k) => ({ label: `exit: ${name}`, on: true, swatch: boxSwatch(tint(k)), toggle: () => {} })));
    const x = scale(0, 1, 0, W);
    axisX(root, x, H - 24, { format: (v) => Math.round(v * 100) + "%", count: 5, top: 4 });
    visible().forEach((i, row) => {
      const s = D.series[i], top = row * 70 + 22, hit = D.tradeoff[i].deadline;
      labelAbove(root, label(s), s, 0, top - 5, W, hit === null ? "" : `${percent(hit)} in time`);
      let at = 0;
      names.forEach((name, k) => {
        const v = D.exits.rows[i][k];
        if (!v) return;
        const w = x(at + v) - x(at), bar = svg("rect", { x: x(at), y: top, width: Math.max(0.5, w - 1), height: 18, rx: 3, style: `fill:${tint(k)}` });
        bar.addEventListener("pointermove", (event) => figure.show(event, label(s), names.map((n, j) => ({ name: n, color: tint(j), value: percent(D.exits.rows[i][j]), low: j !== k }))));
        bar.addEventListener("pointerleave", () => figure.hide());
        root.append(bar);
        at += v;
      });
      if (hit !== null) root.append(svg("rect", { x: 0, y: top + 23, width: W, height: 7, rx: 3.5, style: "fill:var(--grid)" }), svg("rect", { x: 0, y: top + 23, width: Math.max(1, W * hit), height: 7, rx: 3.5, style: `fill:${color(s)}` }));
    });
  });

  /* Accuracy against latency */
  add("tradeoff", (w) => w < 420 ? 360 : 410, (figure, root, W, H) => {
    const shown = visible().filter((i) => D.tradeoff[i].acc !== null && D.tradeoff[i].p50 !== null), m = { l: 50, r: 14, t: 18, b: 42 };
    if (!shown.length) { root.append(svg("text", { x: 0, y: 40 }, "no labelled answers")); return; }
    const ys = shown.flatMap((i) => [D.tradeoff[i].lo ?? D.tradeoff[i].acc, D.tradeoff[i].hi ?? D.tradeoff[i].acc]);
    const pad = Math.max(0.01, (Math.max(...ys) - Math.min(...ys)) * 0.12);
    const y = scale(Math.max(0, Math.min(...ys) - pad), Math.min(1, Math.max(...ys) + pad), H - m.b, m.t);
    const nearest = Math.min(...shown.map((i) => D.tradeoff[i].p50)), wide = Math.max(...shown.map((i) => D.tradeoff[i].p95 ?? D.tradeoff[i].p50)) > 5 * nearest && nearest > 0;
    const x = scale(wide ? nearest * 0.7 : 0, Math.max(...shown.map((i) => D.tradeoff[i].p95 ?? D.tradeoff[i].p50)) * 1.05, m.l, W - m.r, wide);
    const most = Math.max(1, ...shown.map((i) => D.tradeoff[i].bytes ?? 0)), radius = (t) => 5 + 11 * Math.sqrt((t.bytes ?? 0) / most);
    const value = (i) => [D.tradeoff[i].acc, -D.tradeoff[i].p50, -(D.tradeoff[i].bytes ?? 0)];
    const beats = (q, p) => q.every((v, k) => v >= p[k]) && q.some((v, k) => v > p[k]);
    const unbeaten = new Set(shown.filter((i) => !shown.some((j) => beats(value(j), value(i)))));  // among what is shown now
    const front = [...unbeaten].sort((a, b) => D.tradeoff[a].p50 - D.tradeoff[b].p50);
    axisY(root, y, m.l, W - m.r, { format: (v) => parseFloat((v * 100).toFixed(1)) + "%", count: 5 });
    axisX(root, x, H - m.b, { label: "latency (p50, line to p95)", format: msTick, count: W < 420 ? 4 : 6 });
    const labels = [];
    if (front.length > 1) root.append(svg("path", { d: "M" + front.map((i) => `${x(D.tradeoff[i].p50)},${y(D.tradeoff[i].acc)}`).join("L"), fill: "none", style: "stroke:var(--faint)", "stroke-width": 1.2, "stroke-dasharray": "2 4" }));
    for (const i of shown) {
      const s = D.series[i], t = D.tradeoff[i], cx = x(t.p50), cy = y(t.acc);
      if (t.p95 !== null) root.append(svg("line", { x1: cx, x2: x(t.p95), y1: cy, y2: cy, style: `stroke:${color(s)}`, "stroke-width": 1.6, "stroke-dasharray": dash(s), opacity: .75 }),
        svg("line", { x1: x(t.p95), x2: x(t.p95), y1: cy - 4, y2: cy + 4, style: `stroke:${color(s)}`, "stroke-width": 1.6 }));
      if (t.lo !== null) root.append(svg("line", { x1: cx, x2: cx, y1: y(t.lo), y2: y(t.hi), style: `stroke:${color(s)}`, "stroke-width": 1.6, opacity: .55 }));
      const text = label(s), w = text.length * 6.6;
      labels.push({ i, text, w, x: Math.min(cx + 10, W - m.r - w), cx, cy });
    }
    place(labels, m.t, H - m.b - 8);
    const dots = [];
    for (const l of labels.sort((a, b) => (D.tradeoff[b.i].bytes ?? 0) - (D.tradeoff[a.i].bytes ?? 0))) {  // small ones on top
      const s = D.series[l.i], t = D.tradeoff[l.i], dot = svg("circle", { cx: l.cx, cy: l.cy, r: radius(t), style: unbeaten.has(l.i) ? `fill:${color(s)};stroke:var(--ink)` : `fill:${color(s)};fill-opacity:.35;stroke:${color(s)}`, "stroke-width": 1.6 });
      dot.addEventListener("pointermove", (event) => figure.show(event, label(s), [
        { name: "accuracy", value: percent(t.acc) }, { name: "95% interval", value: t.lo === null ? "-" : `${percent(t.lo)} – ${percent(t.hi)}` },
        { name: "p50", value: msText(t.p50) }, { name: "p95", value: msText(t.p95) }, { name: "sent up", value: bytesText(t.bytes) }, { name: "in time", value: percent(t.deadline) },
        { name: unbeaten.has(l.i) ? "on the Pareto front" : "beaten by another plan", value: "", low: true }]));
      dot.addEventListener("pointerleave", () => figure.hide());
      if (Math.abs(l.y - l.cy) > 20) root.append(svg("line", { x1: l.cx, x2: l.x - 2, y1: l.cy, y2: l.y, style: `stroke:${color(s)}`, "stroke-width": 1, opacity: .6 }));
      const text = svg("text", { x: l.x, y: l.y + 4, class: "strong", style: "paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round" }, l.text);
      root.append(text);
      dots.push(dot);
    }
    root.append(...dots);
  });

  /* Bandwidth over time with the requests below it */
  const view = { trial: 0, link: 0, from: 0, to: 0 };
  const T = () => D.timelines[view.trial];
  const TINTS = ["var(--t1)", "var(--u0)", "var(--t0)", "var(--t2)", "var(--d)", "var(--t3)"];
  const hasBacklog = () => { const l = T() && T().links[view.link]; return Boolean(l && ["up", "down"].some((d) => l[d] && l[d].backlog)); };
  const lanesHeight = () => T() ? (hasBacklog() ? 74 : 0) + (T().queues.nodes.length ? 74 : 0) + 26 : 0;
  const timeline = add("timeline", (w) => (w < 560 ? 470 : 520) + lanesHeight(), (figure, root, W, H) => {
    const t = T(), link = t.links[view.link], sides = link ? ["up", "down"].filter((d) => link[d]) : [];
    const m = { l: 46, r: 10, b: 40 }, x = scale(view.from, view.to, m.l, W - m.r);
    const clip = svg("clipPath", { id: "clip-time" }, svg("rect", { x: m.l, y: 0, width: W - m.l - m.r, height: H }));
    root.append(svg("defs", {}, clip));
    const names = { up: "Mbit/s up", down: "Mbit/s down" }, tints = { up: "var(--u0)", down: "var(--s1)" };
    const rates = Math.round((H - m.b - lanesHeight()) * (sides.length ? 0.54 : 0)), each = sides.length ? rates / sides.length : 0;
    let lower = rates;
    const lane = (label, curves, format) => {
      const top = lower + 24, base = lower + 66, shown = curves.filter((c) => c.v);
      const peak = Math.max(1e-9, ...shown.flatMap((c) => c.v.filter((v, j) => c.t[j + 1] >= view.from && c.t[j] <= view.to)));
      const y = scale(0, peak * 1.1, base, top);
      axisY(root, y, m.l, W - m.r, { label, count: 2, format });
      for (const c of shown) root.append(svg("path", { d: c.v.map((v, j) => `${j ? "H" + x(c.t[j]).toFixed(1) + "V" : "M" + x(c.t[0]).toFixed(1) + ","}${y(v).toFixed(1)}`).join("") + `H${x(c.t[c.t.length - 1]).toFixed(1)}`, fill: "none", style: `stroke:${c.tint}`, "stroke-width": 1.4, "clip-path": "url(#clip-time)" }));
      lower += 74;
    };
    sides.forEach((side, k) => {
      const c = link[side], top = k * each + 24, base = (k + 1) * each - 8;
      const inside = c.rate.filter((v, j) => c.t[j + 1] >= view.from && c.t[j] <= view.to);
      const y = scale(0, Math.max(0.01, ...inside) * 1.08, base, top);
      axisY(root, y, m.l, W - m.r, { label: names[side], count: 3 });
      root.append(svg("line", { class: "axis", x1: m.l, x2: W - m.r, y1: base, y2: base }));
      const step = (values) => values.map((v, j) => `${j ? "H" + x(c.t[j]).toFixed(1) + "V" : "M" + x(c.t[0]).toFixed(1) + ","}${y(v).toFixed(1)}`).join("") + `H${x(c.t[c.t.length - 1]).toFixed(1)}`;
      if (c.sent) root.append(svg("path", { d: `${step(c.sent)}V${base}H${x(c.t[0])}Z`, style: `fill:${tints[side]}`, opacity: .32, "clip-path": "url(#clip-time)" }));
      root.append(svg("path", { d: step(c.rate), fill: "none", style: `stroke:${tints[side]}`, "stroke-width": 1.5, "clip-path": "url(#clip-time)" }));
    });
    if (hasBacklog()) lane("kB queued on the link", sides.map((d) => ({ t: link[d].t, v: link[d].backlog, tint: tints[d] })), tick);
    const nodeTint = (k) => `var(--s${(k + 2) % 8})`;
    if (t.queues.nodes.length) lane("requests waiting: " + t.queues.nodes.map((n) => n.name).join(", "), t.queues.nodes.map((n, k) => ({ t: t.queues.t, v: n.v, tint: nodeTint(k) })), tick);
    const r = t.requests, own = link && t.devices.filter((d) => link.ends.includes(d));
    const mine = r.t.map((v, j) => j).filter((j) => r.t[j] >= view.from && r.t[j] <= view.to && (!own || !own.length || own.includes(r.device[j])));
    root.append(svg("text", { x: 0, y: lower + 13 }, `${r.decided}s`));
    for (const j of mine) root.append(svg("rect", { x: x(r.t[j]) - 1, y: lower + 2, width: 2, height: 14, style: `fill:${TINTS[r.kind[j] % 6]}`, opacity: .9 }));
    figure.setLegend(r.kinds.map((name, k) => ({ label: `${r.decided}: ${name}`, on: true, swatch: boxSwatch(TINTS[k % 6]), toggle: () => {} })));
    lower += 26;
    const top = lower + 28, base = H - m.b, finite = mine.map((j) => r.ms[j]).filter(isFinite);
    const y = scale(0, Math.max(1, ...finite) * 1.08, base, top), s = D.series[t.series];
    axisY(root, y, m.l, W - m.r, { label: "latency per request", format: msTick, count: 4 });
    axisX(root, x, base, { label: "seconds since the start of the load", count: W < 560 ? 5 : 10, format: (v) => parseFloat(v.toFixed(2)) });
    if (D.deadline_ms && D.deadline_ms < y.high) root.append(svg("line", { class: "mark", x1: m.l, x2: W - m.r, y1: y(D.deadline_ms), y2: y(D.deadline_ms) }));
    for (const event of t.events) if (event.t >= view.from && event.t <= view.to) {
      root.append(svg("line", { x1: x(event.t), x2: x(event.t), y1: 8, y2: base, style: "stroke:var(--bad)", "stroke-dasharray": "4 3" }),
        svg("text", { x: x(event.t) + 4, y: lower + 14, style: "fill:var(--bad)" }, event.label));
    }
    const dots = svg("g", { "clip-path": "url(#clip-time)" });
    for (const j of mine) {
      const cx = x(r.t[j]).toFixed(1), cy = y(r.ms[j]).toFixed(1);
      if (r.ok[j]) dots.append(svg("circle", { cx, cy, r: mine.length > 500 ? 2.2 : 3.2, style: r.warm[j] ? `fill:none;stroke:${color(s)}` : `fill:${color(s)}`, opacity: .8 }));
      else dots.append(svg("path", { d: `M${cx - 4},${cy - 4}l8,8m0,-8l-8,8`, style: "stroke:var(--bad)", "stroke-width": 2 }));
    }
    root.append(dots);
    const cross = svg("line", { class: "cross", y1: 8, y2: base, visibility: "hidden" }), ring = svg("circle", { r: 6, fill: "none", style: "stroke:var(--ink)", "stroke-width": 1.5, visibility: "hidden" });
    const brush = svg("rect", { y: 8, height: base - 8, style: "fill:var(--accent)", opacity: .14, visibility: "hidden" });
    const area = svg("rect", { x: m.l, y: 0, width: W - m.l - m.r, height: base, fill: "transparent", style: "cursor:crosshair;touch-action:pan-y" });
    root.append(brush, cross, ring, area);
    let start = null;
    const px = (event) => Math.min(W - m.r, Math.max(m.l, event.clientX - root.getBoundingClientRect().left));
    area.addEventListener("pointerdown", (event) => { start = px(event); area.setPointerCapture(event.pointerId); });
    area.addEventListener("pointermove", (event) => {
      const at = px(event), now = x.invert(at);
      if (start !== null) { brush.setAttribute("x", Math.min(start, at)); brush.setAttribute("width", Math.abs(at - start)); brush.setAttribute("visibility", "visible"); }
      cross.setAttribute("x1", at); cross.setAttribute("x2", at); cross.setAttribute("visibility", "visible");
      const rows = sides.flatMap((d) => {
        const k = Math.max(0, link[d].t.findIndex((v) => v > now) - 1), out = [{ name: `trace ${d}`, color: tints[d], value: three(link[d].rate[k]) + " Mbit/s" }];
        if (link[d].sent) out.push({ name: `delivered ${d}`, value: three(link[d].sent[k]) + " Mbit/s", low: true });
        if (link[d].backlog) out.push({ name: `queued ${d}`, value: three(link[d].backlog[k]) + " kB", low: true });
        return out;
      });
      const bin = t.queues.t.findIndex((v) => v > now) - 1;
      t.queues.nodes.forEach((n, k) => { if (bin >= 0 && n.v[bin]) rows.push({ name: `waiting at ${n.name}`, color: nodeTint(k), value: String(n.v[bin]) }); });
      let best = null, py = event.clientY - root.getBoundingClientRect().top;
      for (const j of mine) { const far = Math.hypot(x(r.t[j]) - at, (y(r.ms[j]) - py) * (py > lower ? 1 : 0)); if (far < 24 && (!best || far < best.far)) best = { j, far }; }
      ring.setAttribute("visibility", best ? "visible" : "hidden");
      if (best) {
        const j = best.j;
        ring.setAttribute("cx", x(r.t[j])); ring.setAttribute("cy", y(r.ms[j]));
        rows.push({ name: r.device[j], color: color(s), value: r.ok[j] ? msText(r.ms[j]) : r.error[j] || "failed" });
        rows.push({ name: r.decided, color: TINTS[r.kind[j] % 6], value: r.kinds[r.kind[j]] });
        if (r.exit[j] && r.decided !== "exit") rows.push({ name: "exit", value: r.exit[j], low: true });
      }
      figure.show(event, `${now.toFixed(2)} s`, rows);
    });
    area.addEventListener("pointerup", (event) => {
      const at = px(event), begin = start; start = null;
      if (begin !== null && Math.abs(at - begin) > 8) { const a = x.invert(Math.min(at, begin)), b = x.invert(Math.max(at, begin)); view.from = a; view.to = b; reset.hidden = false; figure.redraw(); }
    });
    area.addEventListener("dblclick", () => reset.click());
    area.addEventListener("pointerleave", () => { if (start === null) { cross.setAttribute("visibility", "hidden"); ring.setAttribute("visibility", "hidden"); figure.hide(); } });
  });
  const zoom = (factor, shift) => {
    const least = Math.min(0, ...T().requests.t), most = T().end || 1, width = Math.min(most - least, (view.to - view.from) * factor);
    const middle = (view.from + view.to) / 2 + shift * (view.to - view.from);
    view.from = Math.max(least, Math.min(middle - width / 2, most - width)); view.to = view.from + width;
    reset.hidden = width >= (most - least) * 0.999; timeline.redraw();
  };
  const zoomButton = (text, name, factor, shift) => el("button", { type: "button", "aria-label": name, title: name, onclick: () => zoom(factor, shift) }, text);
  const whole = () => { view.from = Math.min(0, ...T().requests.t); view.to = T().end || 1; reset.hidden = true; };
  const reset = el("button", { type: "button", hidden: "", onclick: () => { whole(); timeline.redraw(); } }, "whole run");
  if (timeline && D.timelines.length) {
    const trials = el("select", { "aria-label": "trial", onchange: () => { view.trial = +trials.value; fillLinks(); whole(); timeline.redraw(); } },
      ...D.timelines.map((t, i) => el("option", { value: i }, D.series[t.series].label)));
    const links = el("select", { "aria-label": "link", onchange: () => { view.link = +links.value; timeline.redraw(); } });
    const fillLinks = () => {
      const keep = links.selectedOptions[0] ? links.selectedOptions[0].textContent : "";
      links.replaceChildren(...T().links.map((link, i) => el("option", { value: i }, link.name)));
      links.hidden = !T().links.length;
      view.link = Math.max(0, T().links.findIndex((link) => link.name === keep));
      links.value = view.link;
    };
    view.trial = Math.max(0, D.timelines.findIndex((t) => D.series[t.series].policy.includes("edge") || D.series[t.series].policy.includes("cloud")));
    trials.value = view.trial;
    fillLinks();
    whole();
    timeline.addTool("plan", trials, "link", links, zoomButton("+", "zoom in", 0.5, 0), zoomButton("−", "zoom out", 2, 0), zoomButton("◀", "earlier", 1, -0.4), zoomButton("▶", "later", 1, 0.4), reset);
    timeline.host.addEventListener("wheel", (event) => { if (event.ctrlKey) { event.preventDefault(); zoom(event.deltaY > 0 ? 1.25 : 0.8, 0); } }, { passive: false });
  }

  /* Chosen requests as time lines */
  const pickWater = { trial: view.trial, request: 0 };
  const KINDS = { issue: "var(--o)", decision: "var(--o)", encode: "var(--t0)", transfer: "var(--u0)", queue: "var(--bad)", compute: "var(--t1)" };
  const W0 = () => { const t = D.timelines[pickWater.trial]; return t && t.waterfall.length ? t.waterfall[Math.min(pickWater.request, t.waterfall.length - 1)] : null; };
  const water = add("waterfall", () => 24 * Math.max(1, W0() ? W0().spans.length : 1) + 66, (figure, root, W, H) => {
    const q = W0();
    if (!q) { root.append(svg("text", { x: 0, y: 30 }, "no requests")); return; }
    const narrow = W < 560, m = { l: narrow ? 6 : 230, r: 10 }, x = scale(0, Math.max(0.001, q.ms, ...q.spans.map((s) => s.to)) * 1.04, m.l, W - m.r), base = H - 40;
    axisX(root, x, base, { label: "since the request was due", format: msTick, count: narrow ? 4 : 8, top: 6 });
    if (D.deadline_ms && D.deadline_ms < x.high) root.append(svg("line", { class: "mark", x1: x(D.deadline_ms), x2: x(D.deadline_ms), y1: 6, y2: base }));
    root.append(svg("line", { x1: x(q.ms), x2: x(q.ms), y1: 6, y2: base, style: "stroke:var(--ink)", "stroke-width": 1.2 }));
    q.spans.forEach((s, k) => {
      const top = 10 + k * 24, w = Math.max(1.5, x(s.to) - x(s.from)), name = `${s.kind}, ${s.lane}`;
      const bar = svg("rect", { x: x(s.from), y: top, width: w, height: 16, rx: w > 6 ? 3 : 0, style: `fill:${KINDS[s.kind]}`, opacity: narrow ? .55 : 1 });
      const over = svg("rect", { x: 0, y: top - 4, width: W, height: 24, fill: "transparent" });
      over.addEventListener("pointermove", (event) => figure.show(event, name, [{ name: "took", value: msText(s.to - s.from) }, { name: "from", value: msText(s.from), low: true },
        ...Object.entries(s.detail).map(([key, value]) => ({ name: key, value: String(value), low: true }))]));
      over.addEventListener("pointerleave", () => figure.hide());
      root.append(bar, svg("text", narrow ? { x: m.l + 4, y: top + 12 } : { x: m.l - 10, y: top + 12, "text-anchor": "end" }, `${name}  ${msText(s.to - s.from)}`), over);
    });
  });
  if (water && D.timelines.length) {
    const which = el("select", { "aria-label": "request", onchange: () => { pickWater.request = +which.value; water.redraw(); } });
    const fillRequests = () => {
      which.replaceChildren(...D.timelines[pickWater.trial].waterfall.map((q, i) => el("option", { value: i }, `${q.why}: ${q.ok ? msText(q.ms) : "failed"} (${q.id})`)));
      pickWater.request = 0;
    };
    const trial = el("select", { "aria-label": "trial", onchange: () => { pickWater.trial = +trial.value; fillRequests(); water.redraw(); } },
      ...D.timelines.map((t, i) => el("option", { value: i }, D.series[t.series].label)));
    pickWater.trial = view.trial; trial.value = view.trial;
    fillRequests();
    water.addTool("plan", trial, "request", which);
    water.setLegend(Object.entries({ transfer: "transfer", queue: "waiting for a worker", compute: "computing", encode: "codec", issue: "issue, decision" }).map(([k, text]) => ({ label: text, on: true, swatch: boxSwatch(KINDS[k]), toggle: () => {} })));
  }

  /* A metric against the swept value */
  if (D.sweep) {
    document.getElementById("sweep-card").hidden = false;
    const sweep = add("sweep", 320, (figure, root, W, H) => {
      const metric = D.sweep.metrics[+pick.value], m = { l: 52, r: 14, t: 20, b: 42 }, policies = D.policies.filter((p) => D.series.some((s) => s.policy === p));
      figure.setLegend(policies.map((p) => { const s = D.series.find((q) => q.policy === p); return { label: p, swatch: lineSwatch(color(s)), on: true, toggle: () => {} }; }));
      const xs = D.sweep.x, known = xs.filter((v) => v !== null), least = Math.min(...known), most = Math.max(...known), top = Math.max(...metric.y.map((v) => v[2] ?? v[0] ?? 0)) * 1.06 || 1, positive = least > 0 && most / least > 8;
      const x = scale(least, most, m.l + 8, W - m.r, positive), y = scale(0, metric.unit === "%" ? Math.min(100, top) : top, H - m.b, m.t);
      axisY(root, y, m.l, W - m.r, { label: `${metric.label}, ${metric.unit}` });
      axisX(root, x, H - m.b, { label: D.sweep.key });
      for (const p of policies) {
        const rows = D.series.map((s, i) => i).filter((i) => D.series[i].policy === p && metric.y[i][0] !== null).sort((a, b) => xs[a] - xs[b]);
        if (!rows.length) continue;
        const s = D.series[rows[0]];
        if (xs[rows[0]] === null) { // the swept key does not touch this plan: one value at every point
          const v = metric.y[rows[0]][0], line = svg("path", { d: `M${x(least)},${y(v)}H${x(most)}`, fill: "none", style: `stroke:${color(s)}`, "stroke-width": 2, "stroke-dasharray": "5 4" });
          line.addEventListener("pointermove", (event) => figure.show(event, p, [{ name: D.sweep.key, value: "any" }, { name: metric.label, value: `${three(v)} ${metric.unit}` }]));
          line.addEventListener("pointerleave", () => figure.hide());
          root.append(line);
          continue;
        }
        root.append(svg("path", { d: "M" + rows.map((i) => `${x(xs[i])},${y(metric.y[i][0])}`).join("L"), fill: "none", style: `stroke:${color(s)}`, "stroke-width": 2 }));
        for (const i of rows) {
          const [v, lo, hi] = metric.y[i];
          if (lo !== null) root.append(svg("line", { x1: x(xs[i]), x2: x(xs[i]), y1: y(lo), y2: y(hi), style: `stroke:${color(s)}`, "stroke-width": 1.5, opacity: .6 }));
          const dot = svg("circle", { cx: x(xs[i]), cy: y(v), r: 5, style: `fill:${color(s)};stroke:var(--card)`, "stroke-width": 1.5 });
          dot.addEventListener("pointermove", (event) => figure.show(event, p, [{ name: D.sweep.key, value: String(xs[i]) }, { name: metric.label, value: `${three(v)} ${metric.unit}` }]));
          dot.addEventListener("pointerleave", () => figure.hide());
          root.append(dot);
        }
      }
    });
    const pick = el("select", { "aria-label": "metric", onchange: () => sweep.redraw() }, ...D.sweep.metrics.map((metric, i) => el("option", { value: i }, metric.label)));
    sweep.addTool(pick);
  }

  /* One sweep point, or all */
  const points = document.getElementById("points");
  if (points) {
    const choose = (value) => { state.point = value; fill(); redrawAll(); };
    const fill = () => points.replaceChildren(...[null, ...D.points.keys()].map((value) => el("button", { type: "button", "aria-pressed": String(state.point === value), onclick: () => choose(value) }, value === null ? "all points" : D.points[value])));
    fill();
  }
  redrawAll();
  addEventListener("beforeprint", () => { document.querySelectorAll("details").forEach((d) => { d.open = true; }); redrawAll(); });
})();
