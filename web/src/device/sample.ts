/** One text on its way through a device: the policy's steps, and who stands in where a tier does not answer. */
import { costOf } from './costs.js';
import { ContractError } from './errors.js';
import type { Hidden } from './engine.js';
import type { Device } from './device.js';
import { type Leaves, NO_LEAVES } from './policies/policy.js';
import { type Fault, standIns } from './resilience.js';
import {
  type Reading,
  type Step,
  TIERS,
  type Tier,
  type View,
  checkStep,
  layersDone,
  readingOf,
  softmax,
  step,
} from './tiers.js';
import type { Encoded, Text } from './tokens.js';

/** What did not go as the policy wanted. */
export type Reason = Fault | 'no_tier' | 'no_time';

/** One thing that a device tried for a text, in order. */
export interface Stop {
  readonly tier: Tier;
  readonly layer: number;
  /** The largest probability that it read there; null where nothing answered. */
  readonly confidence: number | null;
  readonly ms: number;
}

/** What a device says about one text. */
export interface Answer {
  readonly label: string;
  readonly confidence: number;
  /** Of all classes, in the order of the device's label names. */
  readonly probabilities: readonly number[];
  readonly tier: Tier;
  readonly layer: number;
  /** In λ, failed attempts included. */
  readonly cost: number;
  /** How long the text was worked on or waited for a server. */
  readonly latencyMs: number;
  /** What did not go as the policy wanted, and why; null where everything did. */
  readonly degraded: string | null;
  readonly reason: { readonly tier: Tier; readonly kind: Reason; readonly words: string } | null;
  readonly requestId: string;
  /** Everything that was tried, in order. */
  readonly way: readonly Stop[];
  /** What the policy wanted and got, or a stand-in's exit: what `cost` is of, with failed attempts. */
  readonly steps: readonly Step[];
  readonly nTokens: number;
  /** Whether the encoder reads less than the whole text. */
  readonly cut: boolean;
}

export class Sample {
  private spentMs = 0;
  private failedCost = 0;
  private unseen = NaN;
  private hidden: Hidden | null = null;
  private embedding: Float32Array = new Float32Array();
  private reason: Answer['reason'] = null;
  private readonly notes: string[] = [];
  private readonly way: Stop[] = [];
  private readonly said: Readonly<Record<Tier, Map<number, number[]>>> = {
    mobile: new Map(),
    edge: new Map(),
    cloud: new Map(),
  };
  private readonly encoded: Encoded;

  constructor(
    private readonly own: Device,
    text: Text,
    private readonly requestId: string,
  ) {
    const began = performance.now();
    this.encoded = own.tokenizer.encode(text);
    this.spentMs += performance.now() - began;
  }

  async run(): Promise<Answer> {
    const { own } = this;
    const { policy } = own;
    if (policy.readsEmbedding) await this.enter();
    const view: View = { steps: [], readings: [], embedding: this.embedding, unseen: NaN };
    for (let next = policy.decide(view); next; next = policy.decide(view)) {
      checkStep(view.steps, next, own.exits.get(next.tier) ?? [next.layer]);
      if (view.steps.length > TIERS.length * policy.depths.cloud)
        throw new ContractError(`a policy does not come to an end: ${view.steps.length} steps on one text`);
      if (!(await this.get(view, next))) return this.standIn(view, next);
      view.steps.push(next);
      view.unseen = this.unseen;
      view.readings.push(readingOf(next.tier, next.layer, this.said[next.tier].get(next.layer)!));
    }
    const answer = policy.answer(view);
    if (policy.learns) own.learn(view);
    return this.answered(answer, view.steps);
  }

  private async enter(): Promise<void> {
    const { hidden, embedding, ms } = await this.own.engine.embed(this.encoded);
    this.hidden = hidden;
    this.embedding = embedding;
    this.spentMs += ms;
  }

  /** Read the exit at the end of a step, or an earlier one that is sure enough by `leaves`; false on failure. */
  private async get(view: View, next: Step, leaves: Leaves | null = null): Promise<boolean> {
    const { tier, layer } = next;
    const said = this.said[tier];
    if (said.has(layer)) {
      this.passed(tier, layer, 0);
      return true;
    }
    const before = this.spentMs;
    if (layer === 0) {
      const began = performance.now();
      const { logits, unseen } = this.own.exitZero.read(this.encoded.whole);
      this.spentMs += performance.now() - began;
      this.unseen = unseen;
      said.set(0, softmax(logits));
      this.passed(tier, 0, this.spentMs - before);
      return true;
    }
    if (tier === 'mobile') {
      await this.runLocal(layer, leaves ?? NO_LEAVES);
      return true;
    }
    return this.ask(view, next, leaves);
  }

  private async runLocal(layer: number, leaves: Leaves): Promise<void> {
    const said = this.said.mobile;
    if (!this.hidden) await this.enter();
    for (const stop of this.own.manifest.layers) {
      if (stop <= this.hidden!.layer || stop > layer) continue;
      const { hidden, logits, ms } = await this.own.engine.segment(stop, this.hidden!, this.encoded);
      this.hidden = hidden;
      this.spentMs += ms;
      const probabilities = softmax(logits);
      said.set(stop, probabilities);
      this.passed('mobile', stop, ms);
      if (Math.max(...probabilities) >= (leaves.get(stop) ?? Infinity)) return;
    }
  }

  private async ask(view: View, next: Step, given: Leaves | null): Promise<boolean> {
    const { own } = this;
    const { tier, layer } = next;
    const client = own.clients.get(tier);
    if (!client) {
      this.note(tier, 'no_tier', `there is no ${tier} tier, since the bundle lacks it and no URL of a server is given`);
      return false;
    }
    // Half of what is left, so that a tier that stands in has as much again.
    const budgetMs = (own.settings.deadlineMs - this.spentMs) / 2;
    if (budgetMs <= 0) {
      this.note(tier, 'no_time', `no time was left to ask the ${tier} tier`);
      return false;
    }
    const wanted = given?.size && client.layers ? client.layers[0]! : layer;
    const leaves = given ?? own.policy.exitThresholds(view, next);
    const { ids, types } = this.encoded;
    const inputs = Object.fromEntries(
      own.manifest.inputs.map((name) => [
        name,
        name === 'input_ids' ? ids : name === 'token_type_ids' ? types : ids.map(() => 1),
      ]),
    );
    const outcome = await client.ask({ inputs, requestId: this.requestId, layer: wanted, leaves, budgetMs });
    this.spentMs += outcome.elapsedMs;
    const answered = outcome.probabilities !== null;
    this.failedCost += costOf(own.manifest.costs, [next]) * (outcome.attempts - (answered ? 1 : 0));
    if (!outcome.probabilities) {
      const last = outcome.failures.at(-1)!;
      this.note(tier, last.fault, last.words(tier, outcome.attempts));
      this.way.push({ tier, layer, confidence: null, ms: outcome.elapsedMs });
      return false;
    }
    const [first] = outcome.failures;
    if (first)
      this.note(tier, first.fault, `${first.words(tier, 1)} at first, and answered at attempt ${outcome.attempts}`);
    for (const [each, probabilities] of outcome.probabilities) this.said[tier].set(each, probabilities);
    if (given === null) this.passed(tier, layer, outcome.elapsedMs);
    return true;
  }

  private passed(tier: Tier, layer: number, ms: number): void {
    this.way.push({ tier, layer, confidence: Math.max(...this.said[tier].get(layer)!), ms });
  }

  private note(tier: Tier, kind: Reason, words: string): void {
    this.notes.push(words);
    this.reason ??= { tier, kind, words };
  }

  /** Answer by the nearest tier that answers; the policy has no say any more, and learns nothing. */
  private async standIn(view: View, wanted: Step): Promise<Answer> {
    const { own } = this;
    for (const tier of standIns(wanted, own.last)) {
      const last = own.last.get(tier)!;
      const leaves = own.policy.exitThresholds(view, step(tier, last));
      const afresh: View = { steps: [], readings: [], embedding: view.embedding, unseen: NaN };
      const spent = this.spentMs;
      const there = await this.get(afresh, step(tier, last), leaves);
      const said = [...this.said[tier]].filter(([layer]) => layer <= last).sort(([a], [b]) => a - b);
      if (!there || said.length === 0) continue;
      const sure = said.find(([layer, each]) => Math.max(...each) >= (leaves.get(layer) ?? Infinity));
      const [layer, probabilities] = sure ?? said.at(-1)!;
      const steps = [...view.steps];
      if (layer > layersDone(steps, step(tier, layer))) steps.push(step(tier, layer));
      if (tier !== 'mobile') this.passed(tier, layer, this.spentMs - spent);
      this.notes.push(`so the ${tier} tier answered`);
      return this.answered(readingOf(tier, layer, probabilities), steps);
    }
    throw new ContractError('the mobile tier gave no answer');
  }

  private answered(reading: Reading, steps: readonly Step[]): Answer {
    const { own, encoded } = this;
    return {
      label: own.manifest.label_names[reading.label]!,
      confidence: reading.confidence,
      probabilities: reading.probabilities,
      tier: reading.tier,
      layer: reading.layer,
      cost: costOf(own.manifest.costs, steps) + this.failedCost,
      latencyMs: this.spentMs,
      degraded: this.notes.join(', ') || null,
      reason: this.reason,
      requestId: this.requestId,
      way: this.way,
      steps,
      nTokens: encoded.ids.length,
      cut: encoded.whole.length > encoded.ids.length,
    };
  }
}
