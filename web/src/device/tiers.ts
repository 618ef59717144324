/** The records that every part shares: tiers, steps, readings. */
import { ContractError } from './errors.js';

export const TIERS = ['mobile', 'edge', 'cloud'] as const;
export type Tier = (typeof TIERS)[number];

/** The last layer that each tier runs. */
export type Depths = Readonly<Record<Tier, number>>;

/** One run of layers on a tier up to the exit after `layer`; 0 is exit zero, which runs no layer. */
export interface Step {
  readonly tier: Tier;
  readonly layer: number;
}

/** What one exit says about one text. */
export interface Reading extends Step {
  readonly label: number;
  readonly confidence: number;
  readonly probabilities: readonly number[];
}

/** What a policy may look at. */
export interface View {
  steps: Step[];
  readings: Reading[];
  /** The mean embedding before any layer; empty where the policy does not read it. */
  embedding: Float32Array;
  /** The share of the text's features of which exit zero knows nothing; NaN where it was not read. */
  unseen: number;
}

export function step(tier: Tier, layer: number): Step {
  return { tier, layer };
}

export function sameStep(a: Step, b: Step): boolean {
  return a.tier === b.tier && a.layer === b.layer;
}

/** Turn logits into probabilities, in double precision. */
export function softmax(logits: ArrayLike<number>): number[] {
  const values = Array.from(logits);
  const top = Math.max(...values);
  const raised = values.map((each) => Math.exp(each - top));
  const total = raised.reduce((sum, each) => sum + each, 0);
  return raised.map((each) => each / total);
}

/** Return the first of the largest values and its place. */
export function largest(values: readonly number[]): { place: number; value: number } {
  const value = Math.max(...values);
  return { place: values.indexOf(value), value };
}

export function readingOf(tier: Tier, layer: number, probabilities: readonly number[]): Reading {
  const { place, value } = largest(probabilities);
  return { tier, layer, label: place, confidence: value, probabilities };
}

/** Return how many layers a step need not run, since its tier stands there. */
export function layersDone(steps: readonly Step[], next: Step): number {
  const last = steps.at(-1);
  return last?.tier === next.tier ? last.layer : 0;
}

/** Check that a step may follow others where its tier has exits after the layers `exits`. */
export function checkStep(steps: readonly Step[], next: Step, exits: readonly number[]): void {
  const told = `${next.tier} layer ${next.layer}`;
  if (next.layer === 0 && (steps.length > 0 || next.tier !== 'mobile'))
    throw new ContractError(`${told} reads exit zero, which is read first and on the device`);
  if (!exits.includes(next.layer))
    throw new ContractError(`${told} has no exit to read: the exits are after layers ${exits.join(', ')}`);
  const done = layersDone(steps, next);
  if (next.layer <= done && next.layer > 0)
    throw new ContractError(`${told} would run no layer: the trace already stands at layer ${done}`);
}
