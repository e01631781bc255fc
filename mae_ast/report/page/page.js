// The page: header, sections in order, navigation.
const PARTS = ["data", "forward", "backward", "optimizer"];

function milliseconds(seconds) {
  return `${numberText(seconds * 1000)} ms`;
}

function memoryText(gib) {
  return gib < 1 ? `${Math.round(gib * 1024)} MiB` : `${gib.toFixed(1)} GiB`;
}

function stepCard(times) {
  const title = element("b", {}, values.runs[times.run]);
  const recorded = times.update_s === undefined ? "no update times are recorded"
    : `recorded: ${milliseconds(times.update_s)} per update` +
      (times.clips_per_s === undefined ? "" : `, ${numberText(times.clips_per_s)} clips per second`) +
      (times.process_gib === undefined ? "" : `, peak memory ${memoryText(times.process_gib)}`);
  const card = element("div", { class: "card clip" }, title, element("div", { class: "soft" }, recorded));
  if (!times.parts) return card;
  const total = PARTS.reduce((sum, part) => sum + times.parts[part], 0);
  const bar = element("div", { class: "bar" }, ...PARTS.map((part, n) =>
    element("div", { style: `width: ${(100 * times.parts[part]) / total}%; background: ${colour(n)}`, title: part })));
  const legend = element("div", { class: "legend" }, ...PARTS.map((part, n) => element("span", { class: "soft" },
    swatch(n), `${part} ${milliseconds(times.parts[part])} (${Math.round((100 * times.parts[part]) / total)} %)`)));
  const memory = [
    times.peak_gib ? `peak ${memoryText(times.peak_gib)} on the GPU` : null,
    times.counted_gib ? `${memoryText(times.counted_gib)} counted for a batch of ${times.batch} clips` : null,
  ].filter(Boolean).join("; ");
  card.append(bar, legend, element("div", { class: "soft" },
    `measured: ${times.clips} of ${times.batch} clips per batch, ${numberText(times.seconds)} s each, in ${times.precision}, ` +
    `${numberText(times.parameters / 1e6)} M parameters, on ${times.hardware}` + (memory ? `; memory: ${memory}` : "")));
  return card;
}

function tablesSection(tables) {
  return tables.filter(([, table]) => table.rows.length)
    .flatMap(([title, table]) => [element("h3", {}, title), tableOf(table)]);
}

function sections() {
  const settings = values.settings.flatMap((table) => [element("h3", {}, table.title),
    table.rows.length ? tableOf(table, "settings") : element("p", {}, "None.")]);
  const results = tablesSection([["Last validation", values.validation],
    ["Frozen features, last metrics of the run", values.probe], ["mae-ast evaluate", values.evaluation]]);
  const studies = (values.studies ?? []).map((study, n) => [n ? `study-${n + 1}` : "study", study.title, studySection(study)]);
  return [
    ...studies,
    ["runs", values.runs.length === 1 ? "Run" : "Runs", [tableOf(values.facts, "facts")]],
    ["settings", "Settings", settings],
    ["curves", "Curves", values.panels.length ? curvesSection() : []],
    ["results", "Results", results],
    ["reconstructions", "Reconstructions", values.clips.length ? reconstructionsSection() : []],
    ["embeddings", "Embeddings", values.embeddings.length ? embeddingsSection() : []],
    ["step", "Time of a step", values.steps.length ? [
      element("p", {}, "Recorded by the run, and split by a few steps when this page was made, on the machine" +
        " named. Data: reading, cropping and masking, on a CPU also the filterbank, in one process; training" +
        " does this in its workers, beside the step."),
      ...values.steps.map(stepCard)] : []],
    ["missing", "Missing on this page", values.notes.length ? [element("ul", { class: "notes" },
      ...values.notes.map(([run, note]) => element("li", {}, run ? `${run}: ${note}` : note)))] : []],
  ].filter(([, , content]) => content.length);
}

function themeButton() {
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const button = element("button", { type: "button", id: "theme" });
  const label = () => { button.textContent = isDark() ? "light" : "dark"; };
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
  label();
  return button;
}

const shown = sections();
document.body.append(
  element("header", {}, element("h1", {}, values.title), element("span", { class: "soft" }, values.about)),
  element("nav", {}, ...shown.map(([id, , ]) => element("a", { href: `#${id}` }, id)), themeButton()),
  ...shown.map(([id, title, content]) => element("section", { id }, element("h2", {}, title),
    ...content.filter((each) => each !== null))),
);
