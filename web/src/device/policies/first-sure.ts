/** early-exit, and the two papers' routers: DIMEC-DC and DIMEE, with fixed and with adaptive centroids. */
import * as v from 'valibot';
import { ContractError } from '../errors.js';
import { type Depths, type Reading, type Step, TIERS, type Tier, type View, step } from '../tiers.js';
import { type Leaves, type Learnt, Policy } from './policy.js';

const Layers = v.pipe(v.array(v.pipe(v.number(), v.integer(), v.minValue(1))), v.minLength(1));
export const EarlyExitSettings = v.object({ layers: Layers, threshold: v.number() });
export const DimecDcSettings = v.object({ alpha: v.number(), beta: v.number() });
export const DimeeSettings = v.object({
  thresholds: v.object({ alpha: v.number() }),
  layers: Layers,
  edge_layers: v.optional(v.nullable(Layers)),
});

/** A policy that runs exit by exit and answers at the first reading that is sure enough. */
abstract class FirstSure extends Policy {
  protected abstract onward(steps: readonly Step[]): Step | null;

  protected isSure(_reading: Reading): boolean {
    return false;
  }

  decide(view: View): Step | null {
    const next = this.onward(view.steps);
    const last = view.readings.at(-1);
    return next && last && this.isSure(last) ? null : next;
  }
}

/** The whole encoder on the device, left at the first exit whose confidence reaches a threshold. */
export class EarlyExit extends FirstSure {
  readonly name = 'early-exit';
  readonly readsEmbedding = true;
  private readonly way: readonly Step[];

  constructor(
    depths: Depths,
    private readonly settings: v.InferOutput<typeof EarlyExitSettings>,
  ) {
    super(depths);
    this.way = settings.layers.map((layer) => step('mobile', layer));
  }

  protected onward(steps: readonly Step[]): Step | null {
    return this.way[steps.length] ?? null;
  }

  protected override isSure(reading: Reading): boolean {
    return reading.confidence >= this.settings.threshold;
  }

  endpoints(): readonly Step[] {
    return this.way;
  }
}

/** Mean embeddings of three pools, kept as sums with counts; an empty pool is never the nearest. */
export class Centroids {
  readonly width: number;

  constructor(
    private readonly sums: Float64Array,
    private readonly counts: Float64Array,
  ) {
    this.width = sums.length / counts.length;
    const sound =
      counts.length === 3 &&
      Number.isInteger(this.width) &&
      this.width > 0 &&
      counts.every((each) => each >= 0) &&
      counts.some((each) => each > 0) &&
      sums.every((each) => Math.abs(each) < 1e100);
    if (!sound) throw new ContractError('centroids need finite sums of three pools and at least one sample');
  }

  nearest(embedding: Float32Array): number {
    let nearest = 0;
    let least = Infinity;
    for (let pool = 0; pool < 3; pool += 1) {
      const count = this.counts[pool]!;
      if (count === 0) continue;
      let square = 0;
      let product = 0;
      for (let place = 0; place < this.width; place += 1) {
        const mean = this.sums[pool * this.width + place]! / count;
        square += mean * mean;
        product += mean * embedding[place]!;
      }
      const score = square - 2 * product;
      if (score < least) [nearest, least] = [pool, score];
    }
    return nearest;
  }

  update(pool: number, embedding: Float32Array): void {
    for (let place = 0; place < this.width; place += 1) this.sums[pool * this.width + place]! += embedding[place]!;
    this.counts[pool]! += 1;
  }

  learnt(): Learnt {
    return { sums: this.sums.slice(), counts: this.counts.slice() };
  }
}

/** Routes to the tier of the nearest pool; the adaptive kind moves that pool's centroid by the text. */
abstract class Router extends FirstSure {
  readonly readsEmbedding = true;
  override readonly learns: boolean;
  readonly name: string;

  constructor(
    depths: Depths,
    private centroids: Centroids,
    kind: string,
    adaptive: boolean,
  ) {
    super(depths);
    this.learns = adaptive;
    this.name = `${kind}-${adaptive ? 'adaptive' : 'fixed'}`;
  }

  protected abstract enter(tier: Tier): Step;

  protected onward(_steps: readonly Step[]): Step | null {
    return null;
  }

  override decide(view: View): Step | null {
    if (view.steps.length > 0) return super.decide(view);
    if (view.embedding.length !== this.centroids.width)
      throw new ContractError(
        `the embeddings have ${view.embedding.length} numbers, the centroids ${this.centroids.width}`,
      );
    return this.enter(TIERS[this.centroids.nearest(view.embedding)]!);
  }

  override learn(view: View): void {
    if (this.learns) this.centroids.update(TIERS.indexOf(view.steps[0]!.tier), view.embedding);
  }

  override learnt(): Learnt | null {
    return this.learns ? this.centroids.learnt() : null;
  }

  override resume(learnt: Learnt): void {
    const found = new Centroids(learnt.sums.slice(), learnt.counts.slice());
    if (!this.learns || found.width !== this.centroids.width)
      throw new ContractError(`what is kept does not fit the policy ${this.name}`);
    this.centroids = found;
  }
}

/** DIMEC-DC: every tier answers with its last exit. */
export class DimecDc extends Router {
  constructor(depths: Depths, centroids: Centroids, adaptive: boolean) {
    super(depths, centroids, 'dimec-dc', adaptive);
  }

  protected enter(tier: Tier): Step {
    return step(tier, this.depths[tier]);
  }

  endpoints(): readonly Step[] {
    return TIERS.map((tier) => this.enter(tier));
  }
}

/** DIMEE: a tier answers at its first sure exit, the cloud at its last. */
export class Dimee extends Router {
  private readonly alpha: number;
  private readonly exits: Readonly<Record<Tier, readonly number[]>>;

  constructor(depths: Depths, centroids: Centroids, settings: v.InferOutput<typeof DimeeSettings>, adaptive: boolean) {
    super(depths, centroids, 'dimee', adaptive);
    this.alpha = settings.thresholds.alpha;
    this.exits = {
      mobile: settings.layers.filter((layer) => layer <= depths.mobile),
      edge: (settings.edge_layers ?? settings.layers).filter((layer) => layer <= depths.edge),
      cloud: [depths.cloud],
    };
    if (TIERS.some((tier) => this.exits[tier].length === 0)) throw new ContractError('a tier has no exit to leave at');
  }

  protected enter(tier: Tier): Step {
    return step(tier, this.exits[tier][0]!);
  }

  protected override onward(steps: readonly Step[]): Step | null {
    const last = steps.at(-1)!;
    const exits = this.exits[last.tier];
    const layer = exits[exits.indexOf(last.layer) + 1];
    return layer === undefined ? null : step(last.tier, layer);
  }

  protected override isSure(reading: Reading): boolean {
    return reading.confidence >= this.alpha;
  }

  override exitThresholds(_view: View, next: Step): Leaves {
    return new Map(this.exits[next.tier].map((layer) => [layer, this.alpha]));
  }

  endpoints(): readonly Step[] {
    return TIERS.flatMap((tier) => this.exits[tier].map((layer) => step(tier, layer)));
  }
}
