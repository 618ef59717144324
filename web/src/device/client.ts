/** The client of a tier's server: sends a text's token ids, returns the exits' probabilities or failures. */
import * as v from 'valibot';
import { OptionError, messageOf, quoted } from './errors.js';
import type { Leaves } from './policies/index.js';
import { Breaker, Failure, type Pass, RETRIED, backoffMs, refusal } from './resilience.js';
import type { Settings } from './settings.js';
import { type Tier, softmax } from './tiers.js';
import {
  HEADER_LENGTH,
  type Response as Answer,
  WireError,
  decodeResponse,
  encodeRequest,
  encodeThresholds,
  parseJson,
  saidLayers,
} from './wire.js';

/** What a device wants of a tier. */
export interface Ask {
  readonly inputs: Readonly<Record<string, readonly number[]>>;
  readonly requestId: string;
  /** The layer of the exit that is needed. */
  readonly layer: number;
  readonly leaves: Leaves;
  /** How long it may take, all attempts together. */
  readonly budgetMs: number;
}

export interface Outcome {
  /** By the layers of the exits that were reached; null without an answer. */
  readonly probabilities: ReadonlyMap<number, number[]> | null;
  readonly failures: readonly Failure[];
  /** How many requests were sent. */
  readonly attempts: number;
  readonly elapsedMs: number;
}

/** Requests to a tier's server, and the bytes of their bodies and of the answers'. */
export interface Traffic {
  requests: number;
  sentBytes: number;
  receivedBytes: number;
}

/** How far below a threshold a server may have left an exit: it may round otherwise than this device. */
const ROUNDING = 1e-6;
const LOOPBACK = new Set(['localhost', '127.0.0.1', '[::1]']);

/** Return a server's base URL without a slash at its end. */
export function checkedUrl(url: string, tier: Tier): string {
  let parts: URL;
  try {
    parts = new URL(url);
  } catch {
    throw new OptionError(`the URL of the ${tier} tier, ${quoted(url)}, is none: give https://HOST:PORT`);
  }
  if (!['http:', 'https:'].includes(parts.protocol) || parts.username || parts.password || parts.search || parts.hash)
    throw new OptionError(`the URL of the ${tier} tier must be no more than https://HOST:PORT/PATH`);
  return parts.href.replace(/\/+$/, '');
}

/** Return a bearer token that can be sent, null for an empty one; no message repeats it. */
export function checkedToken(token: string | null): string | null {
  const found = (token ?? '').trim();
  if (!/^[\x21-\x7e]*$/.test(found))
    throw new OptionError('The token holds blanks or characters that no header may hold: check it.');
  return found || null;
}

export class TierClient {
  readonly breaker: Breaker;
  readonly traffic: Traffic = { requests: 0, sentBytes: 0, receivedBytes: 0 };
  /** The layers of the server's exits, once it has said them. */
  layers: readonly number[] | null = null;
  private readonly model: string;
  private token: string | null = null;
  private ours = false;
  private notBefore = 0;

  constructor(
    private readonly tier: Tier,
    private readonly url: string,
    private readonly fingerprint: string,
    private readonly nClasses: number,
    private readonly settings: Settings,
    private readonly fetcher: typeof fetch,
  ) {
    this.model = `${url}/v2/models/${tier}`;
    this.breaker = new Breaker(settings);
  }

  /** Take another token, kept in memory alone; null sends none. */
  setToken(token: string | null): void {
    const found = checkedToken(token);
    const { protocol, hostname } = new URL(this.url);
    if (found && protocol === 'http:' && !LOOPBACK.has(hostname))
      throw new OptionError(
        `The ${this.tier} tier is asked over plain HTTP on another machine, which would show the token: use https.`,
      );
    if (found !== this.token) this.breaker.close();
    this.token = found;
  }

  /** Ask for one text; whatever happens, the outcome is there within the budget. */
  async ask(ask: Ask): Promise<Outcome> {
    const talk = new Talk(ask);
    const failures: Failure[] = [];
    let probabilities: ReadonlyMap<number, number[]> | null = null;
    for (let attempt = 1; attempt <= this.settings.attempts; attempt += 1) {
      if (failures.length > 0 && !(await this.wait(failures.at(-1)!, attempt, talk))) break;
      const given = this.breaker.admit();
      if (!given) {
        const { last } = this.breaker;
        if (failures.length === 0) failures.push(new Failure('resting', last ? `${last.fault}, ${last.detail}` : ''));
        break;
      }
      try {
        probabilities = await this.attempt(talk, given);
        this.breaker.succeeded(given);
        break;
      } catch (error) {
        const failure = failureOf(error, talk);
        this.count(given, failure);
        failures.push(failure);
        if (!RETRIED.has(failure.fault) || isOffline()) break;
      }
    }
    return { probabilities, failures, attempts: talk.attempts, elapsedMs: talk.elapsedMs };
  }

  private count(given: Pass, failure: Failure): void {
    if (failure.fault === 'refused' || failure.fault === 'wrong') {
      this.ours = false;
      this.layers = null;
    }
    if (failure.retryAfterMs !== null)
      this.notBefore = Math.max(this.notBefore, performance.now() + failure.retryAfterMs);
    // A server that is overloaded is well, and without a network nothing is known of it.
    if (failure.fault === 'overloaded' || isOffline()) this.breaker.left(given);
    else this.breaker.failed(given, failure);
  }

  private async wait(failure: Failure, attempt: number, talk: Talk): Promise<boolean> {
    const waitMs = backoffMs(attempt - 1, this.settings.backoffMs) + (failure.retryAfterMs ?? 0);
    if (waitMs >= talk.leftMs) return false;
    await pause(waitMs);
    return true;
  }

  private async attempt(talk: Talk, given: Pass): Promise<ReadonlyMap<number, number[]>> {
    if (isOffline()) throw new Failure('unreachable', 'this device is offline');
    const heldMs = this.notBefore - performance.now();
    if (heldMs > 0) {
      if (heldMs >= talk.leftMs)
        throw new Failure('overloaded', `asks to wait for ${(heldMs / 1_000).toPrecision(3)} s`, heldMs);
      await pause(heldMs * (1 + 0.25 * Math.random()));
    }
    if (given.probes) await this.get(`${this.model}/ready`, talk);
    this.layers ??= await this.askLayers(talk);
    const { layers } = this;
    talk.attempts += 1;
    const requestId = `${talk.ask.requestId}.${this.tier}.${talk.attempts}`;
    const thresholds = thresholdsOf(talk.ask, layers);
    const { headers, body } = encodeRequest({
      id: requestId,
      parameters: {
        deadline_ms: Math.max(1, talk.leftMs),
        ...(thresholds ? { exit_threshold: encodeThresholds(thresholds) } : {}),
      },
      inputs: talk.ask.inputs,
      narrow: this.ours,
    });
    this.traffic.requests += 1;
    this.traffic.sentBytes += body.length;
    const { headerLength, content } = await this.send(`${this.model}/infer`, talk.leftMs, {
      method: 'POST',
      headers,
      body,
    });
    this.traffic.receivedBytes += content.length;
    let response: Answer;
    try {
      response = decodeResponse(headerLength, content);
    } catch (error) {
      throw new Failure('wrong', quoted(messageOf(error)));
    }
    const found = this.believed(response, talk.ask, requestId, layers, thresholds);
    this.ours = 'model_fingerprint' in response.parameters;
    return found;
  }

  /** Return the probabilities by layer of an answer that is as it has to be. */
  private believed(
    response: Answer,
    ask: Ask,
    requestId: string,
    layers: readonly number[],
    thresholds: readonly number[] | null,
  ): Map<number, number[]> {
    this.checkSender(response, requestId, layers);
    const logits = response.outputs.get('logits');
    const shape = [1, layers.length, this.nClasses];
    if (!logits) throw new Failure('wrong', 'holds no tensor logits');
    if (logits.datatype !== 'FP32' || logits.shape.join() !== shape.join())
      throw new Failure(
        'wrong',
        `logits are ${quoted(logits.datatype)} [${logits.shape.join()}], not FP32 [${shape.join()}]`,
      );
    const read = layers.map((layer, place) => {
      const values = logits.values.subarray(place * this.nClasses, (place + 1) * this.nClasses);
      return { layer, values, enough: thresholds?.[place] ?? Infinity };
    });
    const found = new Map<number, number[]>();
    let needed = true;
    for (const { layer, values, enough } of read) {
      if (!values.every(Number.isFinite)) {
        // Deeper exits that were not asked for spare another request, as far as they are sound.
        if (!needed) break;
        throw new Failure('wrong', `no finite logits at layer ${layer}`);
      }
      const probabilities = softmax(values);
      found.set(layer, probabilities);
      if (thresholds ? Math.max(...probabilities) >= enough - ROUNDING : layer === ask.layer) needed = false;
    }
    if (!found.has(ask.layer)) throw new Failure('wrong', `has no exit after layer ${ask.layer}`);
    return found;
  }

  /** Check that it is the answer to this request, by the model that was asked. */
  private checkSender({ id, parameters }: Answer, requestId: string, layers: readonly number[]): void {
    if (id !== requestId) throw new Failure('wrong', `answers another request, ${quoted(id)}`);
    const fingerprint = parameters['model_fingerprint'];
    if (fingerprint !== undefined && fingerprint !== this.fingerprint)
      throw new Failure(
        'wrong',
        `runs another model, ${quoted(JSON.stringify(fingerprint)).slice(0, 12)}, than the bundle's`,
      );
    if ('layers' in parameters && saidLayers(parameters)?.join() !== layers.join())
      throw new Failure('wrong', `has exits after other layers than ${layers.join(', ')}`);
  }

  private async askLayers(talk: Talk): Promise<number[]> {
    const content = await this.get(this.model, talk);
    const Metadata = v.object({ parameters: v.record(v.string(), v.unknown()) });
    let layers: number[] | null = null;
    try {
      layers = saidLayers(v.parse(Metadata, parseJson(content)).parameters);
    } catch {
      // Said below.
    }
    if (!layers)
      throw new Failure('wrong', 'does not say after which layers its exits are, and the bundle lacks the tier');
    return layers;
  }

  /** Return the body of what a server answers at once, or not at all. */
  private async get(url: string, talk: Talk): Promise<Uint8Array> {
    const limitMs = Math.min(this.settings.probeMs, talk.leftMs);
    try {
      return (await this.send(url, limitMs, {})).content;
    } catch (error) {
      if (isTimeout(error)) throw new Failure('slow', `no sign after ${Math.round(limitMs)} ms`);
      throw error;
    }
  }

  private async send(
    url: string,
    limitMs: number,
    init: RequestInit,
  ): Promise<{ headerLength: string | null; content: Uint8Array }> {
    const headers = new Headers(init.headers);
    if (this.token) headers.set('Authorization', `Bearer ${this.token}`);
    const signal = AbortSignal.timeout(Math.max(1, Math.floor(limitMs)));
    let response: Response;
    try {
      response = await this.fetcher(url, {
        ...init,
        headers,
        signal,
        credentials: 'omit',
        cache: 'no-store',
        redirect: 'error',
        referrerPolicy: 'no-referrer',
      });
    } catch (error) {
      if (isTimeout(error)) throw error;
      throw new Failure('unreachable', this.whyUnreachable());
    }
    const content = await this.bounded(response);
    if (response.status !== 200) throw refusal(response.status, response.headers.get('Retry-After'), saidIn(content));
    return { headerLength: response.headers.get(HEADER_LENGTH), content };
  }

  /** Read no more of a body than is allowed. */
  private async bounded(response: Response): Promise<Uint8Array> {
    const most = this.settings.maxResponseBytes;
    const parts: Uint8Array[] = [];
    let length = 0;
    const reader = response.body?.getReader();
    try {
      for (let part = await reader?.read(); part && !part.done; part = await reader!.read()) {
        length += part.value.length;
        if (length > most) {
          void reader!.cancel();
          throw new Failure('wrong', `more than ${most} bytes`);
        }
        parts.push(part.value);
      }
    } catch (error) {
      if (error instanceof Failure || isTimeout(error)) throw error;
      throw new Failure('unreachable', 'the connection was lost');
    }
    const content = new Uint8Array(length);
    let at = 0;
    for (const part of parts) {
      content.set(part, at);
      at += part.length;
    }
    return content;
  }

  /** A browser does not say whether nobody answered, or somebody who may not be heard. */
  private whyUnreachable(): string {
    if (isOffline()) return 'this device is offline';
    const foreign = typeof location !== 'undefined' && new URL(this.url).origin !== location.origin;
    return foreign ? 'no connection, or this site is not allowed' : 'no connection';
  }
}

/** How far asking a tier for one text has come. */
class Talk {
  attempts = 0;
  private readonly began = performance.now();

  constructor(readonly ask: Ask) {}

  get elapsedMs(): number {
    return performance.now() - this.began;
  }

  get leftMs(): number {
    return this.ask.budgetMs - this.elapsedMs;
  }
}

/** Return the confidence from which a tier may leave each of its exits; null where it leaves none early. */
export function thresholdsOf(ask: Ask, layers: readonly number[]): number[] | null {
  const found = layers.map((layer) => (layer >= ask.layer ? (ask.leaves.get(layer) ?? Infinity) : Infinity));
  return found.slice(0, -1).some((each) => each < Infinity) ? found : null;
}

function failureOf(error: unknown, talk: Talk): Failure {
  if (error instanceof Failure) return error;
  if (isTimeout(error)) return new Failure('slow', `after ${Number((talk.ask.budgetMs / 1_000).toPrecision(2))} s`);
  if (error instanceof WireError) return new Failure('wrong', quoted(error.message));
  return new Failure('broken', quoted(messageOf(error)));
}

function isTimeout(error: unknown): boolean {
  return error instanceof DOMException && (error.name === 'TimeoutError' || error.name === 'AbortError');
}

/** Tell whether this device knows that it has no network. */
export function isOffline(): boolean {
  return typeof navigator !== 'undefined' && !((navigator.onLine as boolean | undefined) ?? true);
}

function saidIn(content: Uint8Array): string {
  try {
    return quoted(v.parse(v.object({ error: v.string() }), parseJson(content)).error);
  } catch {
    return '';
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
