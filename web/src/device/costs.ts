/** What a trace costs, in λ: 1 λ is the price of one edge layer on one text. */
import { type Step, type Tier, layersDone } from './tiers.js';

/** The prices of a manifest's `costs`. */
export interface CostModel {
  readonly mobile_layer: number;
  readonly edge_layer: number;
  readonly cloud_layer: number;
  readonly cloud_request: number;
  readonly to_edge: number;
  readonly to_cloud: number;
  readonly exit_zero: number;
  readonly mobile_work: number;
  readonly edge_work: number;
}

/** Return the cost of a trace; a change of tier takes a transfer and all layers from the tokens on. */
export function costOf(costs: CostModel, steps: readonly Step[]): number {
  const layers: Record<Tier, number> = { mobile: 0, edge: 0, cloud: 0 };
  const sent: Record<Tier, number> = { mobile: 0, edge: 0, cloud: 0 };
  let zeros = 0;
  steps.forEach((each, index) => {
    const before = steps.slice(0, index);
    if (before.at(-1)?.tier !== each.tier) sent[each.tier] += 1;
    if (each.layer === 0) zeros += 1;
    layers[each.tier] += each.layer - layersDone(before, each);
  });
  // In the order in which Python adds them, so that the sums are the same to the last digit.
  return [
    costs.mobile_layer * costs.mobile_work * layers.mobile,
    costs.edge_layer * costs.edge_work * layers.edge,
    costs.cloud_layer * layers.cloud,
    costs.to_edge * sent.edge,
    (costs.to_cloud + costs.cloud_request) * sent.cloud,
    costs.exit_zero * zeros,
  ].reduce((sum, each) => sum + each, 0);
}
