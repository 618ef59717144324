// The rule of dimec.reporting.results.Tunable, and what follows from it. Numbers in, numbers out: no page in here.

const PARTS = ["mobile_layers", "edge_layers", "cloud_layers", "to_edge", "to_cloud", "exit_zero"];
const MIXED = ["all-mobile", "all-edge", "all-cloud", "majority"];

const costOf = (use, prices) => PARTS.reduce((sum, part) => sum + prices[part] * use[part], 0);

// Lambda in units of confidence: `price` is what all layers on the mobile device cost.
const lambdaOf = (price, prices, layers) => price / (prices.mobile_layers * layers);

function choose(choices, prices, lambda) {
  const found = choices.map((choice) => {
    const cost = costOf(choice.validation_use, prices);
    return { choice, cost, reward: choice.validation_confidence - lambda * cost };
  });
  const best = Math.max(...found.map((each) => each.reward));
  // Of equals the cheapest, then the first: only a strictly cheaper one takes its place.
  return found
    .filter((each) => each.reward >= best - 1e-12)
    .reduce((kept, each) => (each.cost < kept.cost ? each : kept)).choice;
}

// Under the dial: the cheapest that may be taken. Of equals the first without thresholds, then the first.
function chooseWithin(choices, prices, maxDrop) {
  const found = choices.map((choice) => ({ choice, cost: costOf(choice.validation_use, prices) }));
  const last = found.pop();
  const plain = (each) => Object.keys(each.choice.at).length === 0;
  return found
    .filter((each) => each.choice.bound_points <= maxDrop + 1e-9 && each.cost < last.cost - 1e-9)
    .reduce((kept, each) => {
      const gap = each.cost - kept.cost;
      const before = Math.abs(gap) <= 1e-9 ? plain(each) && !plain(kept) : gap < 0;
      return before ? each : kept;
    }, last).choice;
}

// The best random mixture of at most two controls that costs at most so much; less than the cheapest meets the cheapest.
function randomAtCost(cost, points) {
  if (points.length === 0) return null;
  const at = Math.max(cost, Math.min(...points.map((point) => point.cost)));
  let best = -Infinity;
  for (const cheap of points.filter((point) => point.cost <= at)) {
    best = Math.max(best, cheap.accuracy);
    for (const dear of points.filter((point) => point.cost > at)) {
      const share = (at - cheap.cost) / (dear.cost - cheap.cost);
      best = Math.max(best, (1 - share) * cheap.accuracy + share * dear.accuracy);
    }
  }
  return best;
}

const relative = (cost, reference) => (reference > 0 ? cost / reference - 1 : null);

// Every row of the table, policies first, in the order of the study.
function tableAt(whatif, values, prices) {
  const lambda = lambdaOf(values.price, prices, whatif.n_layers);
  const dial = whatif.max_drop !== null;
  const rows = whatif.rows.map((row) => {
    const within = dial && row.kind === "policy";
    const choice = within ? chooseWithin(row.choices, prices, values.max_drop) : choose(row.choices, prices, lambda);
    const [mobile, edge, cloud] = choice.shares;
    const { score, accuracy, at } = choice;
    const cost = costOf(choice.use, prices);
    return { name: row.name, kind: row.kind, way: choice.name, at, mobile, edge, cloud, score, accuracy, cost };
  });
  const controls = rows.filter((row) => row.kind === "control");
  const mixed = dial ? [] : controls.filter((row) => MIXED.includes(row.name));
  const cloud = controls.find((row) => row.name === "all-cloud");
  for (const row of rows) {
    row.against_mobile = relative(row.cost, prices.mobile_layers * whatif.n_layers);
    row.against_cloud = cloud ? relative(row.cost, cloud.cost) : null;
    row.drop = cloud ? 100 * (cloud.score - row.score) : null;
    row.random_at_cost = row.kind === "policy" ? randomAtCost(row.cost, mixed) : null;
  }
  return { lambda, mixed, rows: [...rows.filter((row) => row.kind === "policy"), ...controls] };
}
