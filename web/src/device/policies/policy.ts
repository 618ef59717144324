/** The seam between a decision rule and the device that runs it. */
import { ContractError } from '../errors.js';
import type { Depths, Reading, Step, View } from '../tiers.js';

/** What a policy has learnt, as it is kept. */
export interface Learnt {
  readonly sums: Float64Array;
  readonly counts: Float64Array;
}

/** The confidence from which an exit is enough, by layer. */
export type Leaves = ReadonlyMap<number, number>;
export const NO_LEAVES: Leaves = new Map();

export abstract class Policy {
  abstract readonly name: string;
  /** Whether it looks at embeddings. */
  abstract readonly readsEmbedding: boolean;
  /** Whether it learns from every answered text. */
  readonly learns: boolean = false;

  constructor(readonly depths: Depths) {}

  /** Return the next step for a text, or null to answer it. */
  abstract decide(view: View): Step | null;

  /** Return every exit that it may answer from. */
  abstract endpoints(): readonly Step[];

  /** Return the confidence from which a text leaves the exits of the tier that is about to run a step. */
  exitThresholds(_view: View, _next: Step): Leaves {
    return NO_LEAVES;
  }

  /** Return what answers a text once `decide` has returned null. */
  answer(view: View): Reading {
    const last = view.readings.at(-1);
    if (!last) throw new ContractError(`the policy ${this.name} answers a text without running any exit`);
    return last;
  }

  /** Take note of an answered text. */
  learn(_view: View): void {
    // Most policies learn nothing.
  }

  /** Return a copy of what it has learnt; null for a policy that learns nothing. */
  learnt(): Learnt | null {
    return null;
  }

  /** Go on from what an earlier session has learnt. */
  resume(_learnt: Learnt): void {
    throw new ContractError(`the policy ${this.name} learns nothing`);
  }
}
