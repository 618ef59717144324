/** When to ask a tier again, when to leave it alone, and which tier stands in for it. */
import { type Step, TIERS, type Tier } from './tiers.js';

export const WORDS = {
  unreachable: 'could not be reached',
  slow: 'did not answer in time',
  overloaded: 'was overloaded',
  unauthorised: 'refused the token or certificate of this device',
  refused: 'refused the request',
  broken: 'failed',
  wrong: 'gave an answer that cannot be trusted',
  resting: 'was left alone after failures',
} as const;
export type Fault = keyof typeof WORDS;

/** What is worth a second attempt; asking twice changes nothing on a server. */
export const RETRIED: ReadonlySet<Fault> = new Set<Fault>(['unreachable', 'overloaded', 'broken']);
/** What will not pass by itself within a few requests. */
const OPENS_AT_ONCE: ReadonlySet<Fault> = new Set<Fault>(['unauthorised', 'wrong']);

/** Why a tier gave no answer; on its way up it is thrown. */
export class Failure extends Error {
  constructor(
    readonly fault: Fault,
    readonly detail = '',
    readonly retryAfterMs: number | null = null,
  ) {
    super(detail);
  }

  words(tier: Tier, attempts: number): string {
    const tried = attempts > 1 ? ` in ${attempts} attempts` : '';
    return `the ${tier} tier ${WORDS[this.fault]}${tried}${this.detail ? ` (${this.detail})` : ''}`;
  }
}

/** Return the wait after failed attempt 1, 2, ...: doubling, drawn from its upper half so that devices disperse. */
export function backoffMs(attempt: number, firstMs: number): number {
  return firstMs * 2 ** (attempt - 1) * (0.5 + 0.5 * Math.random());
}

/** Return the tiers to try in the place of a step's, the nearest in depth first; mobile, which cannot fail, is last. */
export function standIns(wanted: Step, last: ReadonlyMap<Tier, number>): Tier[] {
  const others = TIERS.filter((tier) => last.has(tier) && tier !== wanted.tier);
  const distance = (tier: Tier) => Math.abs(last.get(tier)! - wanted.layer);
  const ranked = others.sort((a, b) => distance(a) - distance(b) || TIERS.indexOf(a) - TIERS.indexOf(b));
  return ranked.slice(0, ranked.indexOf('mobile') + 1);
}

/** What lets a request go to a tier, after a probe if it says so; to be handed back with the outcome. */
export interface Pass {
  readonly generation: number;
  readonly probes: boolean;
}

export interface BreakerSettings {
  readonly opensAfter: number;
  readonly openMs: number;
  readonly maxOpenMs: number;
}

/** Leaves a tier alone that keeps failing, and finds out when it is back. */
export class Breaker {
  last: Failure | null = null;
  private generation = 0;
  private failures = 0;
  private openMs: number;
  private openUntil: number | null = null;
  private probing = false;

  constructor(
    private readonly settings: BreakerSettings,
    private readonly clock: () => number = () => performance.now(),
  ) {
    this.openMs = settings.openMs;
  }

  get state(): 'closed' | 'open' | 'half-open' {
    if (this.openUntil === null) return 'closed';
    return this.probing || this.clock() >= this.openUntil ? 'half-open' : 'open';
  }

  /** Let a request go, or not (null); a pass has to come back by `succeeded`, `failed` or `left`. */
  admit(): Pass | null {
    if (this.openUntil === null) return { generation: this.generation, probes: false };
    if (this.probing || this.clock() < this.openUntil) return null;
    this.probing = true;
    return { generation: this.generation, probes: true };
  }

  succeeded(given: Pass): void {
    if (given.generation !== this.generation) return;
    this.failures = 0;
    if (given.probes) this.close();
  }

  failed(given: Pass, failure: Failure): void {
    if (given.generation !== this.generation) return;
    this.last = failure;
    this.failures += 1;
    if (given.probes) this.openMs = Math.min(2 * this.openMs, this.settings.maxOpenMs);
    else if (!OPENS_AT_ONCE.has(failure.fault) && this.failures < this.settings.opensAfter) return;
    this.generation += 1;
    this.failures = 0;
    this.probing = false;
    this.openUntil = this.clock() + this.openMs * (0.75 + 0.25 * Math.random());
  }

  /** Take note that a request says nothing about the tier: another may probe. */
  left(given: Pass): void {
    if (given.generation === this.generation && given.probes) this.probing = false;
  }

  /** Forget every failure: the token, or the network, is another one now. */
  close(): void {
    this.generation += 1;
    this.failures = 0;
    this.openUntil = null;
    this.probing = false;
    this.last = null;
    this.openMs = this.settings.openMs;
  }
}

const BY_STATUS: Readonly<Record<number, Fault>> = {
  401: 'unauthorised',
  403: 'unauthorised',
  429: 'overloaded',
  504: 'slow',
};
const MAX_RETRY_AFTER_MS = 60_000;

/** Return the failure that a status other than 200 means. */
export function refusal(status: number, retryAfter: string | null, said: string): Failure {
  const fault = BY_STATUS[status] ?? (status >= 500 ? 'broken' : status >= 400 ? 'refused' : 'wrong');
  const pause = status === 429 || status === 503 ? retryAfterMs(retryAfter) : null;
  return new Failure(fault, `HTTP ${status}${said ? `: ${said}` : ''}`, pause);
}

/** Return the milliseconds of a Retry-After header, which says seconds or a date; null for anything else. */
export function retryAfterMs(value: string | null): number | null {
  const said = (value ?? '').trim();
  if (/^\d+$/.test(said)) return Math.min(1_000 * Number(said.slice(0, 9)), MAX_RETRY_AFTER_MS);
  const then = Date.parse(said);
  return Number.isNaN(then) ? null : Math.min(Math.max(then - Date.now(), 0), MAX_RETRY_AFTER_MS);
}
