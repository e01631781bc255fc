// Embeddings: points coloured by label; point to read, click to listen.
const FIELD = 400, EDGE = 14;

function embeddingsSection() {
  return [
    element("p", {}, "Labelled validation clips: the mean over time of one layer, standardised, in two" +
      " dimensions. Point to read the clip's name and label, click to hear it. Distances between far" +
      " groups mean little in t-SNE."),
    element("div", { class: "scatters" }, ...values.embeddings.map(scatterCard)),
  ];
}

function scatterCard(entry) {
  const area = svg("svg", { viewBox: `0 0 ${FIELD} ${FIELD}`, role: "img", "aria-label": "embeddings" });
  const explained = ` (${Math.round(entry.explained * 100)} % of the variance)`;
  const choice = element("div", { class: "legend choice" });
  const card = element("div", { class: "card plot" },
    element("div", { class: "head" }, element("span", {}, `${values.runs[entry.run]}, layer ${entry.layer}`)),
    choice, area);
  const tip = tooltip(card);
  const dots = entry.names.map((name, n) => dotOf(entry, n, tip));
  area.append(...dots);
  const methods = [["pca", `PCA${explained}`], ["tsne", "t-SNE"]].filter(([key]) => entry[key]);
  const buttons = methods.map(([key, label]) => element("button", { type: "button", click: () => show(key) }, label));
  const show = (shown) => {
    place(dots, entry[shown]);
    methods.forEach(([key], n) => buttons[n].setAttribute("aria-pressed", String(key === shown)));
  };
  choice.append(...buttons);
  show("pca");
  card.append(labelLegend(entry, dots));
  return card;
}

function dotOf(entry, n, tip) {
  const sound = entry.sounds[n], isAudible = sound !== null;
  const dot = svg("circle", { class: isAudible ? "point audible" : "point", r: 5 });
  dot.style.fill = colour(entry.classes[n]);
  const text = [element("b", {}, entry.texts[n]), element("div", {}, entry.names[n])];
  const more = isAudible ? [] : [element("div", {}, "(its sound is not on this page)")];
  dot.addEventListener("pointermove", (event) => tip.show(event, ...text, ...more));
  dot.addEventListener("pointerleave", tip.hide);
  if (isAudible) {
    dot.setAttribute("data-sound", sound);
    dot.addEventListener("click", () => {
      playSound(sound, () => {}, () => dot.classList.remove("playing"), () => {});
      dot.classList.add("playing");
    });
  }
  return dot;
}

function place(dots, points) {
  const [xs, ys] = [0, 1].map((axis) => points.map((point) => point[axis]));
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const room = FIELD - 2 * EDGE, size = Math.max(x1 - x0, y1 - y0) || 1; // the same scale for both axes
  dots.forEach((dot, n) => {
    dot.setAttribute("cx", FIELD / 2 + ((xs[n] - (x0 + x1) / 2) / size) * room);
    dot.setAttribute("cy", FIELD / 2 - ((ys[n] - (y0 + y1) / 2) / size) * room);
  });
}

function labelLegend(entry, dots) {
  const counts = new Map();
  entry.classes.forEach((label) => counts.set(label, (counts.get(label) ?? 0) + 1));
  let chosen = null;
  const buttons = [...counts.keys()].sort((a, b) => a - b).map((label) => {
    const button = element("button", { type: "button", title: "highlight" }, swatch(label),
      `${entry.labels[label]} (${counts.get(label)})`);
    button.addEventListener("click", () => {
      chosen = chosen === label ? null : label;
      dots.forEach((dot, n) => dot.classList.toggle("dim", chosen !== null && entry.classes[n] !== chosen));
      buttons.forEach((each) => each.removeAttribute("aria-pressed"));
      if (chosen !== null) {
        buttons.forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
      }
    });
    return button;
  });
  return element("div", { class: "legend" }, ...buttons);
}
