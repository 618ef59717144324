// The panel with the prices: reads the sliders, asks the rule, shows what it says.

const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  const drawn = ["svg", "g", "circle", "rect", "line", "text", "polyline", "title"].includes(tag);
  const element = drawn ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const signed = (text) => text.replace("-", "−");
const fixed = (value, digits) => {
  const text = value.toFixed(digits);
  return signed(Number(text) === 0 ? text.replace("-", "") : text);
};
const percent = (value) => {
  if (value === null) return "–";
  const text = fixed(value * 100, 0);
  return `${value > 0 && text !== "0" ? "+" : ""}${text}\u00a0%`;
};
const thresholds = (at) =>
  Object.entries(at).map(([name, value]) => `${name}\u00a0${Number(value.toPrecision(4))}`).join(", ") || "–";

const setting = (row) => (row.way ? [row.way, ...(Object.keys(row.at).length ? [thresholds(row.at)] : [])].join(": ") : thresholds(row.at));

function columnsOf(whatif) {
  const score = { key: "score", title: whatif.metric, text: (row) => fixed(row.score * 100, 2) };
  if (whatif.max_drop !== null) {
    return [
      { key: "at", title: "What it is", text: setting, value: (row) => JSON.stringify(row.at), words: true },
      { key: "shares", title: "Answered by mobile / edge / cloud (%)", text: shares, value: () => "", words: true },
      score,
      { key: "drop", title: "Points under the full model", text: (row) => fixed(row.drop, 2) },
      { key: "cost", title: "Cost (λ)", text: (row) => fixed(row.cost, 2) },
      { key: "against_cloud", title: "Cost against all-cloud", text: (row) => percent(row.against_cloud) },
    ];
  }
  return [
    { key: "at", title: "Thresholds", text: (row) => thresholds(row.at), value: (row) => JSON.stringify(row.at), words: true },
    { key: "shares", title: "Answered by mobile / edge / cloud (%)", text: shares, value: () => "", words: true },
    // Where the metric is accuracy, one column says both.
    ...(whatif.metric === "accuracy" ? [] : [score]),
    { key: "accuracy", title: "Accuracy", text: (row) => fixed(row.accuracy * 100, 2) },
    { key: "cost", title: "Cost (λ)", text: (row) => fixed(row.cost, 2) },
    { key: "against_mobile", title: "Against BERT on mobile", text: (row) => percent(row.against_mobile) },
    { key: "against_cloud", title: "Against all-cloud", text: (row) => percent(row.against_cloud) },
    { key: "random_at_cost", title: "Random at its cost (accuracy)", text: random },
  ];
}

function random(row) {
  if (row.random_at_cost === null) return "–";
  const gap = row.accuracy - row.random_at_cost;
  const cell = document.createDocumentFragment();
  cell.append(fixed(row.random_at_cost * 100, 2));
  cell.append(make("small", {}, `policy ${fixed(Math.abs(gap) * 100, 2)} ${gap < 0 ? "below" : "above"}`));
  return cell;
}

function shares(row) {
  const bar = make("span", { class: "shares", "aria-hidden": "true" });
  const numbers = make("span", { class: "share-numbers" });
  for (const tier of ["mobile", "edge", "cloud"]) {
    const part = make("span", { class: tier });
    part.style.width = `${row[tier] * 100}%`;
    bar.append(part);
    const number = make("span", { "data-key": tier, "data-value": row[tier] }, fixed(row[tier] * 100, 1));
    numbers.append(tier === "mobile" ? "" : " / ", number);
  }
  const cell = document.createDocumentFragment();
  cell.append(bar, numbers);
  return cell;
}

function showTable(whatif, rows) {
  const table = document.getElementById("what-if-table");
  const columns = columnsOf(whatif);
  const heads = columns.map((column) =>
    make("th", { scope: "col", class: column.words ? "" : "number" }, column.title));
  table.tHead.replaceChildren(make("tr", {}, make("th", { scope: "col" }, "Policy"), ...heads));
  for (const body of table.tBodies) {
    const members = rows.filter((row) => row.kind === body.dataset.kind);
    const title = body.dataset.kind === "policy" ? "Policies" : "Controls";
    const head = make("th", { scope: "rowgroup", colspan: columns.length + 1 }, make("span", {}, title));
    body.replaceChildren(make("tr", { class: "group" }, head), ...members.map((row) => lineOf(row, columns)));
  }
}

function lineOf(row, columns) {
  const number = make("span", { class: `place ${row.kind}`, "aria-hidden": "true" }, row.place);
  const name = make("th", { scope: "row" }, make("span", { class: "named" }, number, row.name));
  const cells = columns.map((column) => {
    const value = column.value ? column.value(row) : row[column.key] ?? "";
    const attributes = { "data-key": column.key, "data-value": value, class: column.words ? "" : "number" };
    return make("td", attributes, column.text(row));
  });
  return make("tr", { "data-name": row.name, "data-kind": row.kind }, name, ...cells);
}

// About five round steps over a range.
function ticksOf(low, high) {
  const rough = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) found.push(tick);
  return found;
}

function showScatter(rows, mixed, measure, title) {
  const place = document.getElementById("scatter");
  const width = Math.max(280, Math.min(760, place.clientWidth));
  const height = Math.round(Math.min(340, width * 0.62));
  const edges = { left: 46, right: width - 14, top: 24, bottom: height - 40 };
  const shown = rows.filter((row) => measure === "score" || row.kind === "policy" || !["majority", "exit-zero"].includes(row.name));
  const heights = shown.map((row) => row[measure] * 100);
  const room = Math.max(0.5, (Math.max(...heights) - Math.min(...heights)) * 0.12);
  const [low, high] = [Math.min(...heights) - room, Math.min(100, Math.max(...heights) + room)];
  const dearest = Math.max(1e-9, ...rows.map((row) => row.cost)) * 1.06;
  const x = (cost) => edges.left + (cost / dearest) * (edges.right - edges.left);
  const y = (value) => edges.bottom - ((value - low) / (high - low)) * (edges.bottom - edges.top);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-labelledby": "what-if-caption" });
  for (const tick of ticksOf(low, high)) {
    svg.append(make("line", { x1: edges.left, x2: edges.right, y1: y(tick), y2: y(tick), class: "grid" }));
    svg.append(make("text", { x: edges.left - 6, y: y(tick) + 4, "text-anchor": "end" }, String(Number(tick.toFixed(3)))));
  }
  for (const tick of ticksOf(0, dearest)) {
    svg.append(make("line", { x1: x(tick), x2: x(tick), y1: edges.bottom, y2: edges.bottom + 4, class: "axis" }));
    svg.append(make("text", { x: x(tick), y: edges.bottom + 17, "text-anchor": "middle" }, String(Number(tick.toFixed(3)))));
  }
  svg.append(make("line", { x1: edges.left, x2: edges.right, y1: edges.bottom, y2: edges.bottom, class: "axis" }));
  svg.append(make("text", { x: edges.right, y: height - 4, "text-anchor": "end", class: "title" }, "Cost (λ)"));
  svg.append(make("text", { x: 4, y: 11, class: "title" }, title));
  if (mixed.length > 0) svg.append(randomLine(mixed, x, y, low));
  // Policies come last, on top of what they are held against.
  for (const row of [...shown].reverse()) {
    if (row[measure] * 100 < low) continue;
    const mark = row.kind === "policy"
      ? make("circle", { r: 9 })
      : make("rect", { x: -8, y: -8, width: 16, height: 16 });
    const label = make("text", { "text-anchor": "middle", y: 4 }, row.place);
    const title = make("title", {}, `${row.name}: ${fixed(row[measure] * 100, 2)}, cost ${fixed(row.cost, 2)} λ`);
    const at = `translate(${x(row.cost)}, ${y(row[measure] * 100)})`;
    svg.append(make("g", { class: `mark ${row.kind}`, "data-name": row.name, transform: at }, title, mark, label));
  }
  place.replaceChildren(svg);
}

function randomLine(mixed, x, y, low) {
  const costs = mixed.map((row) => row.cost);
  const [from, to] = [Math.min(...costs), Math.max(...costs)];
  const corners = [...costs, ...Array.from({ length: 101 }, (_, place) => from + ((to - from) * place) / 100)];
  const line = corners
    .sort((a, b) => a - b)
    .map((cost) => [cost, randomAtCost(cost, mixed) * 100])
    .filter(([, value]) => value >= low)
    .map(([cost, value]) => `${x(cost).toFixed(1)},${y(value).toFixed(1)}`);
  return make("polyline", { points: line.join(" "), class: "random" });
}

function whatChanged(before, rows) {
  const moved = rows.filter((row) => row.kind === "policy" && before.has(row.name) &&
    before.get(row.name) !== setting(row));
  if (moved.length === 0) return "The choice stays; costs follow the prices.";
  const said = moved.slice(0, 3).map((row) =>
    `${row.name} now runs at ${setting(row)}: accuracy ${fixed(row.accuracy * 100, 2)}, cost ${fixed(row.cost, 2)} λ`);
  const more = moved.length > 3 ? `; ${moved.length - 3} more changed theirs` : "";
  return `${said.join("; ")}${more}.`;
}

function startWhatIf(all) {
  const panel = document.getElementById("what-if");
  if (!panel || all.length === 0) return;
  panel.hidden = false;
  const task = document.getElementById("task");
  const inputs = [...panel.querySelectorAll("input[data-key]")];
  const said = document.getElementById("changed");
  let whatif = all[0];
  // Sliders round to their steps: the exact values are here.
  let values = {};
  let spoken = new Map();
  let timer = 0;

  const own = () => ({
    price: whatif.price,
    max_drop: whatif.max_drop,
    mobile_layer: whatif.prices.mobile_layers,
    edge_layer: whatif.prices.edge_layers,
    to_edge: whatif.prices.to_edge,
    to_cloud: whatif.prices.to_cloud,
    cloud_model: whatif.prices.cloud_layers * whatif.n_layers,
  });

  function show() {
    const prices = {
      ...whatif.prices,
      mobile_layers: values.mobile_layer,
      edge_layers: values.edge_layer,
      cloud_layers: values.cloud_model / whatif.n_layers,
      to_edge: values.to_edge,
      to_cloud: values.to_cloud,
    };
    const { lambda, mixed, rows } = tableAt(whatif, values, prices);
    rows.forEach((row, place) => { row.place = String(place + 1); });
    showTable(whatif, rows);
    const dial = whatif.max_drop !== null;
    const [measure, title] = dial ? ["score", `${whatif.metric} × 100`] : ["accuracy", "Accuracy (%)"];
    showScatter(rows, mixed, measure, title);
    const said = dial ? "" : `λ = ${Number(lambda.toPrecision(4))} of confidence; `;
    document.getElementById("lambda").textContent = `${said}${whatif.n.toLocaleString("en")} test rows`;
    return rows;
  }

  function remember(rows) {
    spoken = new Map(rows.map((row) => [row.name, setting(row)]));
  }

  function restart() {
    values = own();
    for (const input of inputs) {
      const key = input.dataset.key;
      if (key === "cloud_model") input.max = 4 * whatif.n_layers;
      if (values[key] > Number(input.max)) input.max = values[key];
      input.value = values[key];
    }
    remember(show());
  }

  // Spoken once the hand rests: a word for every step of a slider would be noise.
  function speak(rows) {
    clearTimeout(timer);
    timer = setTimeout(() => {
      said.textContent = whatChanged(spoken, rows);
      remember(rows);
    }, 400);
  }

  function take(input) {
    const { key } = input.dataset;
    if (input.value.trim() === "" || Number.isNaN(Number(input.value))) return;
    values[key] = Math.min(Math.max(Number(input.value), Number(input.min)), Number(input.max));
    for (const other of inputs) {
      if (other !== input && other.dataset.key === key) other.value = values[key];
    }
    speak(show());
  }

  for (const input of inputs) {
    input.addEventListener("input", () => take(input));
    // What was typed may be empty or out of range: say what is used instead.
    input.addEventListener("change", () => { input.value = values[input.dataset.key]; });
  }
  task?.addEventListener("change", () => {
    whatif = all[Number(task.value)];
    restart();
    said.textContent = `Task ${whatif.task}, at the study's prices.`;
  });
  document.getElementById("reset").addEventListener("click", () => {
    restart();
    said.textContent = "Back at the start.";
  });
  document.getElementById("prices").addEventListener("submit", (event) => event.preventDefault());
  new ResizeObserver(show).observe(document.getElementById("scatter"));
  restart();
}
