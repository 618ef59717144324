/** The library alone, for tests that drive a browser by other means than the page. */
import mjs from 'onnxruntime-web/ort-wasm-simd-threaded.mjs?url';
import wasm from 'onnxruntime-web/ort-wasm-simd-threaded.wasm?url';
import { Device } from '../../src/device/device.js';
import { RemoteDevice } from '../../src/device/remote.js';
import type { Answer } from '../../src/device/sample.js';
import type { Text } from '../../src/device/tokens.js';

const runtime = { mjs: new URL(mjs, location.href).href, wasm: new URL(wasm, location.href).href, bytes: 0 };

export interface Places {
  readonly bundle: string;
  readonly edge?: string;
  readonly cloud?: string;
  readonly threads?: number;
}

/** What one text's exits said, and its ids. */
export interface Said {
  readonly ids: number[];
  readonly whole: number[];
  readonly types: number[];
  readonly unseen: number;
  readonly embedding: number[];
  readonly logits: Record<number, number[]>;
}

const absolute = (url: string): string => new URL(url, location.href).href;

/** Read every exit of every text, in this page. */
async function readings({ bundle }: Places, texts: readonly Text[]): Promise<Said[]> {
  const device = await Device.open({ bundle: absolute(bundle), engine: { runtime, threads: 1 } });
  const found: Said[] = [];
  for (const text of texts) {
    const encoded = device.tokenizer.encode(text);
    const zero = device.exitZero.read(encoded.whole);
    const logits: Said['logits'] = { 0: [...zero.logits] };
    const { hidden: start, embedding } = await device.engine.embed(encoded);
    let hidden = start;
    for (const layer of device.manifest.layers) {
      const run = await device.engine.segment(layer, hidden, encoded);
      hidden = run.hidden;
      logits[layer] = [...run.logits];
    }
    const { ids, whole, types } = encoded;
    found.push({ ids, whole, types, unseen: zero.unseen, embedding: [...embedding], logits });
  }
  return found;
}

let remote: RemoteDevice | null = null;

/** Open a device in a worker; return milliseconds. */
async function open({ bundle, threads = 1, ...tiers }: Places): Promise<number> {
  const began = performance.now();
  await remote?.close();
  remote = await RemoteDevice.open({
    ...tiers,
    bundle: absolute(bundle),
    engine: { runtime, threads },
    worker: () => new Worker(new URL('../../src/device/worker.ts', import.meta.url), { type: 'module' }),
  });
  return performance.now() - began;
}

async function classify(texts: readonly Text[]): Promise<Answer[]> {
  const found: Answer[] = [];
  for await (const answer of remote!.stream(texts)) found.push(answer);
  return found;
}

/** Milliseconds of each text, the tenth percentile: its tokens, exit zero, and from the embedding to each exit. */
export interface Timed {
  readonly openMs: number;
  readonly heapBytes: number | null;
  readonly texts: readonly { readonly n: number; readonly ms: Record<string, number> }[];
}

async function timed({ bundle, threads = 1 }: Places, texts: readonly string[], rounds: number): Promise<Timed> {
  const began = performance.now();
  const device = await Device.open({ bundle: absolute(bundle), engine: { runtime, threads } });
  const openMs = performance.now() - began;
  const found = [];
  for (const text of texts) {
    const times: Record<string, number[]> = {};
    const take = (name: string, ms: number): void => void (times[name] ??= []).push(ms);
    // A browser's clock may tick but once in a millisecond: what is shorter is done many times.
    const many = 50;
    let start: number;
    for (let n = 0; n < many; n += 1) device.tokenizer.encode(text);
    for (let round = 0; round < 5; round += 1) {
      start = performance.now();
      for (let n = 0; n < many; n += 1) device.tokenizer.encode(text);
      take('tokens', (performance.now() - start) / many);
    }
    const encoded = device.tokenizer.encode(text);
    for (let round = 0; round < 10; round += 1) {
      start = performance.now();
      for (let n = 0; n < many; n += 1) device.exitZero.read(encoded.whole);
      take('0', (performance.now() - start) / many);
    }
    for (let round = 0; round < rounds; round += 1) {
      start = performance.now();
      let { hidden } = await device.engine.embed(encoded);
      for (const layer of device.manifest.layers) {
        hidden = (await device.engine.segment(layer, hidden, encoded)).hidden;
        take(`${layer}`, performance.now() - start);
      }
    }
    const ms = Object.fromEntries(Object.entries(times).map(([name, all]) => [name, low(all)]));
    found.push({ n: encoded.ids.length, ms });
  }
  const measure = (performance as { measureUserAgentSpecificMemory?: () => Promise<{ bytes: number }> })
    .measureUserAgentSpecificMemory;
  const heapBytes = crossOriginIsolated && measure ? (await measure.call(performance)).bytes : null;
  return { openMs, heapBytes, texts: found };
}

/** The tenth percentile: on a machine that others use too it is nearer to what the work takes than the median is. */
function low(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 10)]!;
}

export const harness = { readings, open, classify, timed };
Object.assign(window, { harness });
