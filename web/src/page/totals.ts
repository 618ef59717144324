/** What all answers come to. */
import type { Answer, Tier } from '../device/index.js';
import { TIERS } from '../device/tiers.js';

const KEPT_TIMES = 2_001;

export class Totals {
  n = 0;
  cost = 0;
  degraded = 0;
  readonly byTier: Record<Tier, number> = { mobile: 0, edge: 0, cloud: 0 };
  private readonly times: number[] = [];

  add(answer: Answer): void {
    this.n += 1;
    this.cost += answer.cost;
    this.byTier[answer.tier] += 1;
    if (answer.degraded !== null) this.degraded += 1;
    this.times.push(answer.latencyMs);
    if (this.times.length > KEPT_TIMES) this.times.shift();
  }

  get meanCost(): number {
    return this.cost / this.n;
  }

  /** Of the latest answers. */
  get medianMs(): number {
    const sorted = [...this.times].sort((a, b) => a - b);
    return sorted[Math.floor(sorted.length / 2)] ?? 0;
  }

  get shares(): readonly { tier: Tier; share: number; n: number }[] {
    return TIERS.map((tier) => ({ tier, share: this.n ? this.byTier[tier] / this.n : 0, n: this.byTier[tier] }));
  }
}
