// The page itself: its theme, its tables' order, its charts.

const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");

// A file opened from disk may have no storage, or one that refuses: then the choice lasts as long as the page.
function stored(value) {
  try {
    if (value !== undefined) localStorage.setItem("dimec-theme", value);
    return localStorage.getItem("dimec-theme");
  } catch {
    return null;
  }
}

const themeNow = () => root.dataset.theme || (dark.matches ? "dark" : "light");

function startTheme(changed) {
  const button = document.getElementById("theme");
  const order = ["auto", "light", "dark"];
  let chosen = order.includes(stored()) ? stored() : "auto";
  const apply = () => {
    if (chosen === "auto") delete root.dataset.theme;
    else root.dataset.theme = chosen;
    button.textContent = `Theme: ${chosen}`;
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    chosen = order[(order.indexOf(chosen) + 1) % order.length];
    stored(chosen);
    apply();
    changed();
  });
  dark.addEventListener("change", changed);
  apply();
}

function startSorting(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", direction);
      for (const body of table.tBodies) sortBody(body, column, direction, head.classList.contains("number"));
    });
  });
}

// Within a section only; rows without a value come last, whichever way.
function sortBody(body, column, direction, numeric) {
  const value = (row) => row.cells[column].dataset.value;
  const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
  const sign = direction === "ascending" ? 1 : -1;
  rows.sort((a, b) => {
    const [left, right] = [value(a), value(b)];
    if (left === "" || right === "") return (left === "") - (right === "");
    const order = numeric ? Number(left) - Number(right) : left.localeCompare(right, "en", { numeric: true });
    return sign * order;
  });
  body.append(...rows);
}

// Charts come in the colours of the light theme; every one of these has its like in the other.
function recoloured(node, theme) {
  if (Array.isArray(node)) return node.map((each) => recoloured(each, theme));
  if (node && typeof node === "object") {
    return Object.fromEntries(Object.entries(node).map(([key, value]) =>
      [key, key === "datasets" ? value : recoloured(value, theme)]));
  }
  const place = data.palettes.light.indexOf(node);
  return place < 0 ? node : data.palettes[theme][place];
}

// Panels wrap, and everything is as wide as its place allows.
function fitted(spec, width) {
  const columns = Math.max(1, Math.floor(width / 215));
  if (spec.facet) {
    const panels = Math.min(columns, spec.columns);
    const inner = { ...spec.spec, width: Math.floor((width - 55) / panels - 22) };
    return { ...spec, columns: panels, spec: inner };
  }
  return { ...spec, width: "container", autosize: { type: "fit-x", contains: "padding" } };
}

function configFor(theme, width) {
  const config = structuredClone(data.themes[theme]);
  config.legend.columns = Math.max(1, Math.floor(width / 170));
  if (width < 480) config.axis.labelLimit = 90;
  return config;
}

const count = (spec) => Object.values(spec.datasets || {}).reduce((sum, rows) => sum + rows.length, 0);

async function draw(place) {
  const spec = data.charts[place.dataset.chart];
  const theme = themeNow();
  const width = place.clientWidth;
  const options = {
    actions: false,
    // Interpreted rather than compiled: the page's policy allows no code that is made from texts.
    ast: true,
    renderer: count(spec) > data.many ? "canvas" : "svg",
    config: configFor(theme, width),
  };
  place.view?.finalize();
  const embedded = await vegaEmbed(place, fitted(recoloured(spec, theme), width), options);
  place.view = embedded;
  place.dataset.drawn = theme;
  place.drawnWidth = width;
}

function startCharts() {
  const places = [...document.querySelectorAll("[data-chart]")];
  let turn = 0;
  // One after the other, so that the page answers in between; a newer request ends an older one.
  async function drawAll(which) {
    const mine = ++turn;
    delete root.dataset.ready;
    for (const place of which) {
      await draw(place);
      await new Promise((resolve) => setTimeout(resolve));
      if (mine !== turn) return;
    }
    root.dataset.ready = themeNow();
  }
  let timer = 0;
  addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      // A phone's address bar changes the height alone.
      if (places.some((place) => place.clientWidth !== place.drawnWidth)) drawAll(places);
    }, 200);
  });
  drawAll(places);
  return () => drawAll(places);
}

function startCopying() {
  const button = document.getElementById("copy");
  const code = document.getElementById("command");
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      // Without a clipboard the text is at least selected, for the keys to copy.
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
  });
}

function startContents() {
  const contents = document.getElementById("contents");
  const wide = matchMedia("(min-width: 72rem)");
  const apply = () => { contents.open = wide.matches; };
  wide.addEventListener("change", apply);
  apply();
}

let redraw = () => {};
startTheme(() => redraw());
startContents();
startCopying();
document.querySelectorAll("table.sortable").forEach(startSorting);
startWhatIf(data.whatif);
redraw = startCharts();
