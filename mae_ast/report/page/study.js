// A study: texts and tables, and for each measure a plot with a row per setting, a dot per seed.
const DOTS = { width: 420, row: 22, label: 150, right: 14, bottom: 26 };

function studySection(study) {
  const order = ["comparisons", "measures", "paper", "origin"];
  const tables = [...study.tables].sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
  const seeds = `${study.seeds} ${study.seeds === 1 ? "seed" : "seeds"}`;
  return [
    element("p", {}, study.finding),
    ...tables.flatMap((table) => table.kind === "measures"
      ? [element("h3", {}, `Measures: mean ± std over ${seeds}`), tableOf(table, "measures")]
      : [element("h3", {}, table.title), tableOf(table)]),
    study.limits ? element("p", {}, `Limits: ${study.limits}`) : null,
    element("h3", {}, "Measures of all runs"),
    element("p", {}, "A dot is a run, a line the mean over seeds. Point at a row to read its values."),
    element("div", { class: "grid" }, ...study.measures.map((measure) => dotsCard(study.settings, measure))),
    ...(study.failed.length ? [element("h3", {}, "Failed"), element("ul", { class: "notes" },
      ...study.failed.map(([run, error]) => element("li", {}, `${run}: ${error}`)))] : []),
  ];
}

function dotsCard(settings, measure) {
  const { width, row, label, right, bottom } = DOTS;
  const height = settings.length * row + bottom, all = measure.values.flat();
  let low = Math.min(...all), high = Math.max(...all);
  const margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  [low, high] = [low - margin, high + margin];
  const x = (value) => label + ((value - low) / (high - low)) * (width - label - right);
  const area = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": measure.title, class: "dots" });
  const card = element("div", { class: "card plot" }, element("div", { class: "head" }, element("span", {}, measure.title)), area);
  const tip = tooltip(card);
  for (const tick of ticks(low, high, 4)) {
    area.append(svg("line", { class: "axis", x1: x(tick), x2: x(tick), y1: 0, y2: height - bottom + 4 }),
      svg("text", { x: x(tick), y: height - 8, "text-anchor": "middle" }, numberText(tick)));
  }
  settings.forEach((setting, number) => {
    const y = (number + 0.5) * row, values = measure.values[number];
    const name = svg("text", { x: label - 8, y: y + 4, "text-anchor": "end" },
      setting.length > 26 ? `${setting.slice(0, 25)}…` : setting);
    area.append(name);
    if (values.length) {
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      area.append(svg("line", { class: "mean", x1: x(mean), x2: x(mean), y1: y - 7, y2: y + 7 }),
        ...values.map((value) => svg("circle", { cx: x(value), cy: y, r: 4, fill: colour(number), "fill-opacity": 0.65 })));
    }
    const text = values.length ? values.map((value) => numberText(value)).join(", ") : "not measured";
    const box = svg("rect", { x: 0, y: y - row / 2, width, height: row, fill: "transparent" });
    box.addEventListener("pointermove", (event) => tip.show(event, element("b", {}, setting), element("div", {}, text)));
    box.addEventListener("pointerleave", () => tip.hide());
    area.append(box);
  });
  return card;
}
