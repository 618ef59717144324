/** What the page knows, and what may be done to it. */
import { signal } from '@preact/signals';
import Papa from 'papaparse';
import mjs from 'onnxruntime-web/ort-wasm-simd-threaded.mjs?url';
import wasm from 'onnxruntime-web/ort-wasm-simd-threaded.wasm?url';
import type { Answer, Loading, Text, Tier, Traffic } from '../device/index.js';
import { RemoteDevice } from '../device/remote.js';
import { type Site, fetchSite } from './site.js';
import { strings } from './strings.js';
import { type Table, readTable, textsOf } from './texts.js';
import { Totals } from './totals.js';

declare const __WASM_BYTES__: number;

export interface Shown {
  readonly id: number;
  readonly text: Text;
  readonly answer: Answer;
}

export interface Run {
  readonly name: string;
  readonly total: number;
  readonly done: number;
  readonly rate: number;
  readonly state: 'running' | 'finished' | 'stopped';
}

export type Health =
  { readonly kind: 'unasked' } | { readonly kind: 'well' } | { readonly kind: 'failed'; readonly why: string };

/** How many answers are drawn. */
export const MOST_SHOWN = 50;
/** At most so many threads run the graphs; a phone has other work for the rest of its cores. */
const MOST_THREADS = 2;
/** How often a run redraws the page, in milliseconds. */
const REDRAW_MS = 100;

export const site = signal<Site | null>(null);
export const device = signal<RemoteDevice | null>(null);
export const loading = signal<Loading>({ done: 0, total: 0 });
export const fault = signal<string | null>(null);
export const complaint = signal<string | null>(null);
export const online = signal(navigator.onLine);
export const readyOffline = signal(false);
export const shown = signal<readonly Shown[]>([]);
export const totals = signal(new Totals());
export const traffic = signal<Partial<Record<Tier, Traffic>>>({});
export const health = signal<Readonly<Record<'edge' | 'cloud', Health>>>({
  edge: { kind: 'unasked' },
  cloud: { kind: 'unasked' },
});
export const wantsToken = signal<Tier | null>(null);
export const hasToken = signal(false);
export const busy = signal(false);
export const table = signal<Table | null>(null);
export const run = signal<Run | null>(null);
export const point = signal(0);
/** What a screen reader is told. */
export const announcement = signal('');

let everything: Shown[] = [];
let stopping = false;
let number = 0;

/** Load the site and open its bundle. */
export async function begin(): Promise<void> {
  addEventListener('offline', () => (online.value = false));
  addEventListener('online', () => {
    online.value = true;
    void device.value?.retryTiers();
  });
  try {
    const found = await fetchSite();
    site.value = found;
    document.title = found.title;
    device.value = await RemoteDevice.open({
      bundle: new URL('./bundle/', location.href).href,
      edge: found.edge,
      cloud: found.cloud,
      engine: {
        runtime: {
          mjs: new URL(mjs, location.href).href,
          wasm: new URL(wasm, location.href).href,
          bytes: __WASM_BYTES__,
        },
        // Threads need a page that is isolated; where they do not start, the device goes on with one.
        threads: crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency) : 1,
      },
      worker: () => new Worker(new URL('../device/worker.ts', import.meta.url), { type: 'module', name: 'device' }),
      onLoading: (now) => (loading.value = now),
    });
  } catch (error) {
    fault.value = (error as Error).message;
    return;
  }
  void registerServiceWorker();
}

/** Let the page start without a network; it is registered last, so that it finds what was fetched in the browser's cache. */
async function registerServiceWorker(): Promise<void> {
  if (!('serviceWorker' in navigator) || !import.meta.env.PROD) return;
  try {
    await navigator.serviceWorker.register('./sw.js');
    await navigator.serviceWorker.ready;
    readyOffline.value = device.value?.about.filesKept === true;
  } catch {
    // The browser denies storage, or the site is not served over HTTPS: the page works while it is open.
  }
}

function take(text: Text, answer: Answer): void {
  const entry = { id: (number += 1), text, answer };
  everything.push(entry);
  totals.value.add(answer);
  for (const tier of ['edge', 'cloud'] as const) {
    const stop = answer.way.find((each) => each.tier === tier);
    if (stop && stop.confidence !== null) health.value = { ...health.value, [tier]: { kind: 'well' } };
    else if (answer.reason?.tier === tier)
      health.value = { ...health.value, [tier]: { kind: 'failed', why: answer.reason.words } };
  }
  if (answer.reason?.kind === 'unauthorised') wantsToken.value = answer.reason.tier;
}

async function redraw(): Promise<void> {
  shown.value = everything.slice(-MOST_SHOWN).reverse();
  const { n, cost, degraded, byTier } = totals.value;
  totals.value = Object.assign(Object.create(Totals.prototype) as Totals, totals.value, { n, cost, degraded, byTier });
  if (device.value) traffic.value = await device.value.traffic();
}

export const answered = (): number => everything.length;

/** Classify one text and show the answer. */
export async function classify(text: Text): Promise<void> {
  if (!device.value || busy.value) return;
  busy.value = true;
  complaint.value = null;
  try {
    const answer = await device.value.classify(text);
    take(text, answer);
    await redraw();
    announcement.value = strings.announced(answer.label, answer.confidence, answer.tier, answer.latencyMs);
  } catch (error) {
    complaint.value = (error as Error).message;
  } finally {
    busy.value = false;
  }
}

/** Open a file, to be classified once its columns are chosen. */
export async function openFile(file: File): Promise<void> {
  complaint.value = null;
  run.value = null;
  try {
    table.value = await readTable(file, device.value?.about.pairs ?? false);
  } catch (error) {
    table.value = null;
    complaint.value = (error as Error).message;
  }
}

/** Classify the texts of the open file, in order. */
export async function classifyTable(): Promise<void> {
  if (!device.value || !table.value || busy.value) return;
  const { name } = table.value;
  const texts = textsOf(table.value);
  table.value = null;
  busy.value = true;
  stopping = false;
  complaint.value = null;
  const began = performance.now();
  let drawn = began;
  let done = 0;
  const tell = (state: Run['state']): void => {
    run.value = { name, total: texts.length, done, rate: done / ((performance.now() - began) / 1_000), state };
  };
  const untilStopped = function* (): Generator<Text> {
    for (const text of texts) {
      if (stopping) return;
      yield text;
    }
  };
  tell('running');
  try {
    for await (const answer of device.value.stream(untilStopped())) {
      take(texts[done]!, answer);
      done += 1;
      if (performance.now() - drawn < REDRAW_MS) continue;
      drawn = performance.now();
      tell('running');
      await redraw();
    }
  } catch (error) {
    complaint.value = (error as Error).message;
  }
  tell(done === texts.length ? 'finished' : 'stopped');
  await redraw();
  announcement.value = done === texts.length ? strings.finished(done) : strings.stopped(done, texts.length);
  busy.value = false;
}

export function stop(): void {
  stopping = true;
}

export function clear(): void {
  everything = [];
  shown.value = [];
  totals.value = new Totals();
  run.value = null;
}

export async function setToken(token: string | null): Promise<void> {
  try {
    await device.value?.setToken(token);
    hasToken.value = token !== null;
    wantsToken.value = null;
    complaint.value = null;
  } catch (error) {
    complaint.value = (error as Error).message;
  }
}

/** Take another operating point; 0 is the bundle's own. */
export async function setPoint(place: number): Promise<void> {
  const folder = place === 0 ? 'bundle' : site.value?.points[place - 1]?.folder;
  if (!device.value || !folder) return;
  point.value = place;
  try {
    await device.value.setPoint(new URL(`./${folder}/`, location.href).href);
  } catch (error) {
    complaint.value = (error as Error).message;
  }
}

/** Give all answers as a file. */
export function download(): void {
  const rows = everything.map(({ text, answer }, index) => ({
    index,
    ...(typeof text === 'string' ? { text } : { text: text[0], text_pair: text[1] }),
    label: answer.label,
    confidence: answer.confidence,
    tier: answer.tier,
    layer: answer.layer,
    cost: answer.cost,
    latency_ms: answer.latencyMs,
    degraded: answer.degraded ?? '',
  }));
  const csv = Papa.unparse(rows, { escapeFormulae: true });
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([csv], { type: 'text/csv;charset=utf-8' }));
  link.download = 'answers.csv';
  link.click();
  URL.revokeObjectURL(link.href);
}
