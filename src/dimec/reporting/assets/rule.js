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
function tableAt(whatif, price, prices) {
  const lambda = lambdaOf(price, prices, whatif.n_layers);
  const rows = whatif.rows.map((row) => {
    const choice = choose(row.choices, prices, lambda);
    const [mobile, edge, cloud] = choice.shares;
    const { score, accuracy, at } = choice;
    const cost = costOf(choice.use, prices);
    return { name: row.name, kind: row.kind, at, mobile, edge, cloud, score, accuracy, cost };
  });
  const controls = rows.filter((row) => row.kind === "control");
  const mixed = controls.filter((row) => MIXED.includes(row.name));
  const cloud = controls.find((row) => row.name === "all-cloud");
  for (const row of rows) {
    row.against_mobile = relative(row.cost, prices.mobile_layers * whatif.n_layers);
    row.against_cloud = cloud ? relative(row.cost, cloud.cost) : null;
    row.random_at_cost = row.kind === "policy" ? randomAtCost(row.cost, mixed) : null;
  }
  return { lambda, mixed, rows: [...rows.filter((row) => row.kind === "policy"), ...controls] };
}
