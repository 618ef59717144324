/** dimec-cascade: answer, run the next exit, go to the edge or to the cloud, by the pooled confidence of the exits. */
import * as v from 'valibot';
import { ContractError } from '../errors.js';
import { type Depths, type Reading, type Step, TIERS, type View, largest, sameStep } from '../tiers.js';
import { type Leaves, NO_LEAVES, Policy } from './policy.js';

const FLOOR = 1e-6;
const whole = v.pipe(v.number(), v.integer(), v.minValue(0));
const AStep = v.pipe(
  v.strictTuple([v.picklist(TIERS), whole]),
  v.transform(([tier, layer]): Step => ({ tier, layer })),
);
const finite = v.pipe(v.number(), v.finite());
const Point = v.object({
  steps: v.pipe(v.array(AStep), v.minLength(1)),
  weights: v.array(finite),
  options: v.pipe(v.array(v.nullable(AStep)), v.minLength(1)),
  borders: v.array(v.number()),
  strange: v.optional(v.boolean(), false),
});
export const CascadeSettings = v.object({
  points: v.pipe(v.array(Point), v.minLength(1), v.maxLength(100_000)),
  unseen_limit: v.optional(v.number(), Infinity),
});
type Point = v.InferOutput<typeof Point>;

function keyOf(strange: boolean, steps: readonly Step[]): string {
  return `${strange ? '?' : ''}${steps.map((each) => `${each.tier} ${each.layer}`).join(', ')}`;
}

export class Cascade extends Policy {
  readonly name = 'dimec-cascade';
  readonly readsEmbedding = false;
  private readonly points: readonly Point[];
  private readonly unseenLimit: number;
  private readonly start: Step;
  private readonly at: ReadonlyMap<string, Point>;
  private readonly leaves: ReadonlyMap<string, Leaves>;

  constructor(depths: Depths, settings: v.InferOutput<typeof CascadeSettings>) {
    super(depths);
    this.points = settings.points;
    this.unseenLimit = settings.unseen_limit;
    this.start = this.points[0]!.steps[0]!;
    this.at = new Map(this.points.map((point) => [keyOf(point.strange, point.steps), point]));
    this.check();
    this.leaves = new Map([...this.at].map(([key, point]) => [key, this.leaving(point)]));
  }

  /** Refuse points between which a text could get lost. */
  private check(): void {
    for (const point of this.points) {
      const lost = point.options.some(
        (option) => option && !this.at.has(keyOf(point.strange, [...point.steps, option])),
      );
      const descends = point.borders.some((border, place) => place > 0 && !(border >= point.borders[place - 1]!));
      if (
        lost ||
        descends ||
        !sameStep(point.steps[0]!, this.start) ||
        point.weights.length !== point.steps.length ||
        point.options.length !== point.borders.length + 1 ||
        point.options.slice(0, -1).includes(null)
      )
        throw new ContractError(`the cascade has no way on from ${keyOf(point.strange, point.steps)}`);
    }
    if (Number.isFinite(this.unseenLimit) && !this.at.has(keyOf(true, [this.start])))
      throw new ContractError('the cascade has no points for strange texts');
  }

  private leaving(from: Point): Leaves {
    const found = new Map<number, number>();
    let point = from;
    for (
      let last = point.steps.at(-1)!;
      last.tier === 'cloud' && point.borders.length > 0;
      last = point.steps.at(-1)!
    ) {
      found.set(last.layer, point.borders.at(-1)!);
      point = this.at.get(keyOf(point.strange, [...point.steps, point.options[0]!]))!;
    }
    return found;
  }

  decide(view: View): Step | null {
    if (view.steps.length === 0) return this.start;
    const point = this.pointOf(view);
    if (point.borders.length === 0) return point.options[0] ?? null;
    const inCloud = point.steps.at(-1)!.tier === 'cloud';
    const confidence = inCloud ? view.readings.at(-1)!.confidence : Math.max(...this.pooled(view));
    const place = point.borders.filter((border) => border <= confidence).length;
    return point.options[place] ?? null;
  }

  override exitThresholds(view: View, next: Step): Leaves {
    return this.leaves.get(keyOf(this.isStrange(view), [...view.steps, next])) ?? NO_LEAVES;
  }

  /** Answer with what the exits say together, in the name of the last one. */
  override answer(view: View): Reading {
    const last = super.answer(view);
    const probabilities = this.pooled(view);
    const { place, value } = largest(probabilities);
    return { tier: last.tier, layer: last.layer, label: place, confidence: value, probabilities };
  }

  endpoints(): readonly Step[] {
    return this.points.map((point) => point.steps.at(-1)!);
  }

  private isStrange(view: View): boolean {
    return view.unseen > this.unseenLimit;
  }

  private pointOf(view: View): Point {
    const point = this.at.get(keyOf(this.isStrange(view), view.steps));
    if (!point) throw new ContractError(`the cascade has no point after ${keyOf(false, view.steps)}`);
    return point;
  }

  private pooled(view: View): number[] {
    const { weights } = this.pointOf(view);
    const pooled = view.readings[0]!.probabilities.map(() => 0);
    view.readings.forEach((reading, exit) => {
      reading.probabilities.forEach((value, place) => {
        pooled[place]! += weights[exit]! * Math.log(Math.max(value, FLOOR));
      });
    });
    const top = Math.max(...pooled);
    const raised = pooled.map((each) => Math.exp(each - top));
    const total = raised.reduce((sum, each) => sum + each, 0);
    return raised.map((each) => each / total);
  }
}
