// Elements of the page, tables and colours. Texts are text nodes, never HTML.
const values = JSON.parse(document.getElementById("values").textContent);

function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") made.style.cssText = value;
    else if (typeof value === "function") made.addEventListener(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function tableOf(table, kind = "") {
  const row = (cell, texts) => element("tr", {}, ...texts.map((text) => element(cell, {}, text)));
  return element("div", { class: "card scroll" },
    element("table", { class: kind },
      table.columns.some(Boolean) ? element("thead", {}, row("th", table.columns)) : null,
      element("tbody", {}, ...table.rows.map((texts) => row("td", texts)))));
}

function colour(number) {
  if (number < 8) return `var(--c${number})`;
  const hue = Math.round(number * 137.5) % 360;
  return `light-dark(hsl(${hue} 55% 42%), hsl(${hue} 60% 72%))`;
}

function swatch(number) {
  return element("i", { class: "swatch", style: `background: ${colour(number)}` });
}

function numberText(value, digits = 4) {
  const rounded = Number(value.toPrecision(digits)), size = Math.abs(rounded);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? rounded.toExponential() : String(rounded);
}

// A box beside the pointer, inside a positioned card.
function tooltip(card) {
  const tip = element("div", { class: "tip", style: "display: none" });
  card.append(tip);
  return {
    hide() { tip.style.display = "none"; },
    show(event, ...children) {
      tip.replaceChildren(...children);
      tip.style.display = "block";
      const box = card.getBoundingClientRect();
      const x = event.clientX - box.left, y = event.clientY - box.top;
      const room = box.width - tip.offsetWidth - 4;
      tip.style.left = `${Math.max(4, x > box.width / 2 ? x - tip.offsetWidth - 14 : Math.min(x + 14, room))}px`;
      tip.style.top = `${Math.max(4, Math.min(y + 12, box.height - tip.offsetHeight - 4))}px`;
    },
  };
}
