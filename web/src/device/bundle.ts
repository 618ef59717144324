/** A bundle's mobile folder on a web server: each file is fetched once, checked against its hash, and kept. */
import * as v from 'valibot';
import type { CostModel } from './costs.js';
import { BundleError, messageOf } from './errors.js';

const count = v.pipe(v.number(), v.safeInteger(), v.minValue(1));
const price = v.pipe(v.number(), v.finite(), v.minValue(0));
const Sha256 = v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/));
const FileInfo = v.object({ sha256: Sha256, bytes: v.pipe(count, v.maxValue(2 ** 31)) });
const Costs: v.GenericSchema<CostModel> = v.object({
  mobile_layer: price,
  edge_layer: price,
  cloud_layer: price,
  cloud_request: price,
  to_edge: price,
  to_cloud: price,
  exit_zero: price,
  mobile_work: price,
  edge_work: price,
});

const Manifest = v.object({
  format: v.literal(1),
  tier: v.literal('mobile'),
  layers: v.pipe(v.array(count), v.minLength(1), v.maxLength(1024)),
  n_layers: v.pipe(count, v.maxValue(1024)),
  label_names: v.pipe(v.array(v.string()), v.minLength(2), v.maxLength(100_000)),
  task: v.object({ name: v.string(), pairs: v.boolean() }),
  inputs: v.array(v.picklist(['input_ids', 'attention_mask', 'token_type_ids'])),
  n_vocabulary: count,
  max_length: v.pipe(count, v.minValue(3), v.maxValue(1_000_000)),
  cut: v.optional(v.picklist(['head', 'head-tail']), 'head'),
  policy: v.string(),
  depths: v.object({ mobile: count, edge: count, cloud: count }),
  costs: Costs,
  quantized: v.boolean(),
  model_fingerprint: v.pipe(v.string(), v.regex(/^sha256:[0-9a-f]{64}$/)),
  files: v.record(v.pipe(v.string(), v.regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/)), FileInfo),
});
export type Manifest = v.InferOutput<typeof Manifest>;

/** Read a manifest; `what` is what messages call it. */
export function readManifest(document: unknown, what = 'bundle/manifest.json'): Manifest {
  const found = v.safeParse(Manifest, document);
  if (found.success) return found.output;
  const [issue] = found.issues;
  throw new BundleError(
    `${what} is no manifest of a mobile tier (${v.getDotPath(issue) ?? 'it'}: ${issue.message}): export the bundle again`,
  );
}

/** What reads a bundle's files by name. */
export interface Files {
  manifest: Manifest;
  /** Return a file's bytes, whose size and hash are those of the manifest. */
  read(name: string): Promise<ArrayBuffer>;
}

const CACHE = 'dimec-bundle';

/** How much of what a device needs has come. */
export interface Loading {
  done: number;
  total: number;
}

/** Fetches a bundle's files; `onProgress` is told bytes as they come. */
export class WebFiles implements Files {
  /** Whether files are kept for the next start; false where the browser denies it. */
  kept = true;
  private readonly loading: Loading = { done: 0, total: 0 };

  private constructor(
    readonly manifest: Manifest,
    private readonly folder: string,
    private readonly fetcher: typeof fetch,
    private readonly onProgress: (loading: Loading) => void,
  ) {}

  static async open(
    folder: string,
    fetcher: typeof fetch,
    onProgress: (loading: Loading) => void = () => undefined,
  ): Promise<WebFiles> {
    if (!('subtle' in crypto))
      throw new BundleError(
        'This page was opened over plain HTTP from another machine, where a browser cannot check files: open it over HTTPS.',
      );
    const base = folder.endsWith('/') ? folder : `${folder}/`;
    const response = await got(fetcher, `${base}manifest.json`, 'no-cache');
    let document: unknown;
    try {
      document = await response.json();
    } catch {
      throw new BundleError(`${base}manifest.json is no JSON: write the site again`);
    }
    return new WebFiles(readManifest(document, `${base}manifest.json`), base, fetcher, onProgress);
  }

  /** Announce what will be read, and how many bytes of other files, so that progress has a total. */
  expect(names: readonly string[], others: number): void {
    this.loading.total = names.reduce((sum, name) => sum + this.info(name).bytes, others);
  }

  async read(name: string): Promise<ArrayBuffer> {
    const { sha256, bytes } = this.info(name);
    // The hash is in the address, so that no cache on the way gives yesterday's file for today's.
    const url = `${this.folder}${name}?sha256=${sha256}`;
    const cache = await this.cache();
    const stored = await cache?.match(url).catch(() => undefined);
    if (stored) {
      const file = await stored.arrayBuffer();
      if (file.byteLength === bytes && (await sha256Of(file)) === sha256) {
        this.came(bytes);
        return file;
      }
      await cache?.delete(url).catch(() => false);
    }
    const response = await got(this.fetcher, url, 'default');
    const file = await this.bounded(response, name, bytes);
    if ((await sha256Of(file)) !== sha256)
      throw new BundleError(
        `${name} is not the file that the manifest names (its SHA-256 differs): write the site again`,
      );
    try {
      await this.forget(cache, name);
      await cache?.put(url, new Response(file, { headers: { 'Content-Type': 'application/octet-stream' } }));
    } catch {
      this.kept = false;
    }
    return file;
  }

  private info(name: string): { sha256: string; bytes: number } {
    const found = this.manifest.files[name];
    if (!found) throw new BundleError(`the manifest does not list ${name}: export the bundle again`);
    return found;
  }

  private async bounded(response: Response, name: string, bytes: number): Promise<ArrayBuffer> {
    const file = new Uint8Array(bytes);
    let at = 0;
    const reader = response.body?.getReader();
    try {
      for (let part = await reader?.read(); part && !part.done; part = await reader!.read()) {
        if (at + part.value.length > bytes) {
          void reader!.cancel();
          at = Infinity;
          break;
        }
        file.set(part.value, at);
        at += part.value.length;
        this.came(part.value.length);
      }
    } catch (error) {
      throw new BundleError(`${name} did not arrive whole (${messageOf(error)}): load the page again`);
    }
    if (at !== bytes)
      throw new BundleError(`${name} has not the ${bytes} bytes that the manifest names: write the site again`);
    return file.buffer;
  }

  /** Take note of bytes that have come. */
  came(bytes: number): void {
    this.loading.done += bytes;
    this.onProgress({ ...this.loading });
  }

  private async cache(): Promise<Cache | null> {
    try {
      return await caches.open(CACHE);
    } catch {
      this.kept = false;
      return null;
    }
  }

  /** Remove a file's earlier versions. */
  private async forget(cache: Cache | null, name: string): Promise<void> {
    for (const request of (await cache?.keys(`${this.folder}${name}`, { ignoreSearch: true })) ?? [])
      await cache!.delete(request);
  }
}

async function got(fetcher: typeof fetch, url: string, cache: RequestCache): Promise<Response> {
  let response: Response;
  try {
    response = await fetcher(url, { cache, credentials: 'same-origin' });
  } catch {
    throw new BundleError(`${url} could not be fetched: check the connection and load the page again`);
  }
  if (!response.ok)
    throw new BundleError(`${url} could not be fetched (HTTP ${response.status}): write the site again`);
  return response;
}

async function sha256Of(file: ArrayBuffer): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', file));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

export const segmentName = (layer: number): string => `segment-${layer}.onnx`;
