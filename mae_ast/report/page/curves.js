// Curves: drag to zoom, double-click to reset, point to read values.
const SIZE = { width: 420, height: 240, left: 54, right: 10, top: 8, bottom: 34 };
const hiddenRuns = new Set();
const plots = [];

function curvesSection() {
  const groups = new Map();
  for (const panel of values.panels) {
    if (!groups.has(panel.group)) groups.set(panel.group, []);
    groups.get(panel.group).push(panel);
  }
  const parts = [];
  for (const [group, panels] of groups) {
    const grid = element("div", { class: "grid" }, ...panels.map(plotCard));
    parts.push(panels[0].is_minor ? element("details", {}, element("summary", {}, group), grid)
      : element("div", {}, element("h3", {}, group), grid));
  }
  return [
    element("p", {}, "Against updates. Thin: training, the mean since the previous line of the log" +
      ` (at most ${values.max_points} points, means of groups). With dots: validation and feature` +
      " metrics. Dashed: chance, or a probe of the mean log-mel. Drag to zoom, double-click to reset."),
    runLegend(),
    ...parts,
  ];
}

function runLegend() {
  if (values.runs.length < 2) return null;
  const buttons = values.runs.map((name, number) => {
    const button = element("button", { type: "button", "aria-pressed": "true", title: "show or hide" },
      swatch(number), name);
    button.addEventListener("click", () => {
      const isHidden = hiddenRuns.has(number);
      if (isHidden) hiddenRuns.delete(number); else hiddenRuns.add(number);
      button.setAttribute("aria-pressed", String(isHidden));
      plots.forEach((draw) => draw());
    });
    return button;
  });
  return element("div", { class: "legend" }, ...buttons);
}

function plotCard(panel) {
  const reset = element("button", { type: "button", style: "visibility: hidden" }, "reset");
  const enlarge = element("button", { type: "button", title: "enlarge" }, "⤢");
  const area = svg("svg", { viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, role: "img", "aria-label": panel.title });
  const card = element("div", { class: "card plot" },
    element("div", { class: "head" }, element("span", {}, panel.title), reset, enlarge), area);
  const tip = tooltip(card);
  const clip = `clip${plots.length}`;
  const state = { view: null }; // null: everything
  const draw = () => {
    reset.style.visibility = state.view ? "visible" : "hidden";
    drawPlot(area, panel, state, clip);
  };
  plots.push(draw);
  const clear = () => { state.view = null; draw(); };
  reset.addEventListener("click", clear);
  area.addEventListener("dblclick", clear);
  enlarge.addEventListener("click", () => card.classList.toggle("large"));
  zoomable(area, state, draw);
  area.addEventListener("pointermove", (event) => {
    if (event.buttons) tip.hide(); else readValues(event, area, panel, state, tip);
  });
  area.addEventListener("pointerleave", () => { tip.hide(); area.querySelector(".cross")?.remove(); });
  draw();
  return card;
}

const shownSeries = (panel) => panel.series.filter((series) => !hiddenRuns.has(series.run));

// Limits of what is shown: the zoomed x, and y unless it was zoomed, too.
function limits(panel, view) {
  const series = shownSeries(panel);
  const xs = series.flatMap((each) => [each.x[0], each.x[each.x.length - 1]]);
  let [x0, x1] = view ? view.x : [Math.min(...xs), Math.max(...xs)];
  if (!(x1 > x0)) [x0, x1] = [(Number.isFinite(x0) ? x0 : 0) - 1, (Number.isFinite(x1) ? x1 : 0) + 1];
  if (view && view.y) return { x0, x1, y0: view.y[0], y1: view.y[1] };
  let y0 = Infinity, y1 = -Infinity;
  for (const each of series) {
    each.x.forEach((x, n) => {
      if (x < x0 || x > x1) return;
      y0 = Math.min(y0, each.y[n]);
      y1 = Math.max(y1, each.y[n]);
    });
  }
  if (y0 > y1) [y0, y1] = [0, 1];
  const room = (y1 - y0) * 0.05 || Math.abs(y0) * 0.05 || 1;
  return { x0, x1, y0: y0 - room, y1: y1 + room };
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
  const first = Math.ceil(low / step), length = Math.min(Math.floor(high / step) - first + 1, 2 * count);
  return Array.from({ length: Math.max(length, 0) }, (_, n) => (first + n) * step);
}

function scalesOf({ x0, x1, y0, y1 }) {
  const width = SIZE.width - SIZE.left - SIZE.right, height = SIZE.height - SIZE.top - SIZE.bottom;
  return {
    x: (value) => SIZE.left + ((value - x0) / (x1 - x0)) * width,
    y: (value) => SIZE.top + ((y1 - value) / (y1 - y0)) * height,
    toX: (place) => x0 + ((place - SIZE.left) / width) * (x1 - x0),
    toY: (place) => y1 - ((place - SIZE.top) / height) * (y1 - y0),
  };
}

function drawPlot(area, panel, state, clip) {
  const range = limits(panel, state.view), scale = scalesOf(range);
  state.scale = scale;
  const right = SIZE.width - SIZE.right, bottom = SIZE.height - SIZE.bottom;
  const drawn = [svg("clipPath", { id: clip }, svg("rect", {
    x: SIZE.left, y: SIZE.top - 4, width: right - SIZE.left + 4, height: bottom - SIZE.top + 8 }))];
  for (const tick of ticks(range.x0, range.x1, 6)) {
    const x = scale.x(tick);
    drawn.push(svg("line", { class: "axis", x1: x, x2: x, y1: SIZE.top, y2: bottom }),
      svg("text", { x, y: bottom + 14, "text-anchor": "middle" }, numberText(tick, 6)));
  }
  for (const tick of ticks(range.y0, range.y1, 5)) {
    const y = scale.y(tick);
    drawn.push(svg("line", { class: "axis", x1: SIZE.left, x2: right, y1: y, y2: y }),
      svg("text", { x: SIZE.left - 6, y: y + 4, "text-anchor": "end" }, numberText(tick, 6)));
  }
  drawn.push(svg("text", { x: (SIZE.left + right) / 2, y: SIZE.height - 4, "text-anchor": "middle" }, "updates"));
  const curves = svg("g", { "clip-path": `url(#${clip})` });
  for (const series of shownSeries(panel)) curves.append(...curveOf(series, scale));
  area.replaceChildren(...drawn, curves);
}

function curveOf(series, scale) {
  const places = series.x.map((x, n) => [scale.x(x).toFixed(1), scale.y(series.y[n]).toFixed(1)]);
  if (series.kind === "reference") { // a level, also if it is known at one update only
    places.unshift([SIZE.left, places[0][1]]);
    places.push([SIZE.width - SIZE.right, places[places.length - 1][1]]);
  }
  const line = svg("path", { class: `curve ${series.kind}`, d: `M${places.join("L")}` });
  line.style.stroke = colour(series.run);
  const hasDots = series.kind === "points" || (places.length === 1 && series.kind === "training");
  if (!hasDots || places.length > 150) return [line];
  return [line, ...places.map(([cx, cy]) => {
    const dot = svg("circle", { cx, cy, r: 2.6 });
    dot.style.fill = colour(series.run);
    return dot;
  })];
}

function placeOf(event, area) {
  const box = area.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * SIZE.width, ((event.clientY - box.top) / box.height) * SIZE.height];
}

function zoomable(area, state, draw) {
  let start = null, box = null;
  area.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    start = placeOf(event, area);
    area.setPointerCapture(event.pointerId);
  });
  area.addEventListener("pointermove", (event) => {
    if (start === null) return;
    const now = placeOf(event, area), tall = Math.abs(now[1] - start[1]) > 20;
    box ??= area.appendChild(svg("rect", { class: "selection" }));
    const top = tall ? Math.min(start[1], now[1]) : SIZE.top;
    const height = tall ? Math.abs(now[1] - start[1]) : SIZE.height - SIZE.bottom - SIZE.top;
    for (const [name, value] of Object.entries({
      x: Math.min(start[0], now[0]), width: Math.abs(now[0] - start[0]), y: top, height })) box.setAttribute(name, value);
  });
  const end = (event) => {
    if (start === null) return;
    const [x, y] = start, now = placeOf(event, area), tall = Math.abs(now[1] - y) > 20;
    start = null;
    box?.remove();
    box = null;
    if (event.type === "pointercancel" || Math.abs(now[0] - x) < 6) return;
    const order = (a, b) => (a < b ? [a, b] : [b, a]);
    const { toX, toY } = state.scale;
    state.view = { x: order(toX(x), toX(now[0])), y: tall ? order(toY(y), toY(now[1])) : null };
    draw();
  };
  area.addEventListener("pointerup", end);
  area.addEventListener("pointercancel", end);
}

// Show the values nearest to the pointer's update, and a line there.
function readValues(event, area, panel, state, tip) {
  const [place] = placeOf(event, area), series = shownSeries(panel);
  if (place < SIZE.left || !series.length) { tip.hide(); return; }
  const x = state.scale.toX(place);
  const near = series.map((each) => {
    let best = 0;
    each.x.forEach((value, n) => { if (Math.abs(value - x) < Math.abs(each.x[best] - x)) best = n; });
    return { each, n: best };
  });
  const closest = near.reduce((a, b) => (Math.abs(b.each.x[b.n] - x) < Math.abs(a.each.x[a.n] - x) ? b : a));
  const update = closest.each.x[closest.n];
  area.querySelector(".cross")?.remove();
  const cross = state.scale.x(update);
  area.append(svg("line", { class: "cross", x1: cross, x2: cross, y1: SIZE.top, y2: SIZE.height - SIZE.bottom }));
  tip.show(event, element("div", {}, `update ${update}`), ...near.map(({ each, n }) => {
    const run = values.runs.length > 1 ? `${values.runs[each.run]}, ` : "";
    const at = each.x[n] === update ? "" : ` (update ${each.x[n]})`;
    return element("div", {}, swatch(each.run), `${run}${each.label}: ${numberText(each.y[n])}${at}`);
  }));
}
