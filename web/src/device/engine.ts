/** The mobile tier's graphs, run by onnxruntime-web. */
import * as ort from 'onnxruntime-web/wasm';
import { type Files, segmentName } from './bundle.js';
import { DeviceError, messageOf } from './errors.js';

/** A hidden state after a layer, or before the first. */
export interface Hidden {
  readonly values: unknown;
  readonly layer: number;
}

export interface Ids {
  readonly ids: readonly number[];
  readonly types: readonly number[];
}

/** What runs graphs; each call says how many milliseconds it took, its turn not counted. */
export interface Engine {
  embed(ids: Ids): Promise<{ hidden: Hidden; embedding: Float32Array; ms: number }>;
  segment(layer: number, hidden: Hidden, ids: Ids): Promise<{ hidden: Hidden; logits: Float32Array; ms: number }>;
}

export interface EngineOptions {
  /** Where the runtime's files are, and the size of the larger one; by default they are looked for beside the library. */
  readonly runtime?: { readonly mjs: string; readonly wasm: string; readonly bytes: number } | undefined;
  readonly threads: number;
}

/** A runtime that does not start, with threads perhaps; a worker in which this happened cannot try again. */
export class RuntimeFault extends DeviceError {
  override name = 'RuntimeFault';
}

/** Milliseconds for a runtime to start its threads, once it is there. */
const START_MS = 15_000;

/** Fetch the runtime; `onBytes` is told bytes as they come. */
async function prepare(
  { runtime, threads }: EngineOptions,
  fetcher: typeof fetch,
  onBytes: (bytes: number) => void,
): Promise<void> {
  ort.env.wasm.numThreads = threads;
  if (!runtime) return;
  ort.env.wasm.initTimeout = START_MS;
  ort.env.wasm.wasmPaths = { mjs: runtime.mjs };
  try {
    const response = await fetcher(runtime.wasm);
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    const parts: Uint8Array<ArrayBuffer>[] = [];
    const reader = response.body!.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value);
      onBytes(part.value.length);
    }
    ort.env.wasm.wasmBinary = await new Blob(parts).arrayBuffer();
  } catch (error) {
    throw new DeviceError(
      `${runtime.wasm} could not be fetched (${messageOf(error)}): check the connection and load the page again`,
    );
  }
}

/** Every file that an engine with these exits reads. */
export function graphNames(layers: readonly number[]): string[] {
  return ['embedding.onnx', ...layers.map(segmentName)];
}

export class OrtEngine implements Engine {
  private turn: Promise<unknown> = Promise.resolve();

  private constructor(
    private readonly sessions: ReadonlyMap<string, ort.InferenceSession>,
    private readonly inputs: readonly string[],
    private readonly nVocabulary: number,
  ) {}

  static async open(
    files: Files,
    options: EngineOptions,
    fetcher: typeof fetch,
    onBytes: (bytes: number) => void,
  ): Promise<OrtEngine> {
    await prepare(options, fetcher, onBytes);
    const { layers, inputs, n_vocabulary: nVocabulary } = files.manifest;
    const sessions = new Map<string, ort.InferenceSession>();
    for (const name of graphNames(layers)) {
      const file = await files.read(name);
      try {
        sessions.set(name, await ort.InferenceSession.create(file, { executionProviders: ['wasm'] }));
      } catch (error) {
        throw new RuntimeFault(`${name} could not be opened by this browser (${messageOf(error)})`);
      }
    }
    delete ort.env.wasm.wasmBinary;
    const engine = new OrtEngine(sessions, inputs, nVocabulary);
    await engine.warm(layers);
    return engine;
  }

  /** Run every graph once: a runtime takes many times as long the first time. */
  private async warm(layers: readonly number[]): Promise<void> {
    const ids = { ids: [0, 0], types: [0, 0] };
    let { hidden } = await this.embed(ids);
    for (const layer of layers) ({ hidden } = await this.segment(layer, hidden, ids));
  }

  async embed(ids: Ids): ReturnType<Engine['embed']> {
    const most = ids.ids.reduce((a, b) => Math.max(a, b), 0);
    if (most >= this.nVocabulary)
      throw new DeviceError(`a token has the id ${most}: the encoder knows ${this.nVocabulary}`);
    const feeds: Record<string, ort.Tensor> = {};
    for (const name of this.inputs)
      feeds[name] = integers(
        name === 'input_ids' ? ids.ids : name === 'token_type_ids' ? ids.types : ids.ids.map(() => 1),
      );
    const { found, ms } = await this.run('embedding.onnx', feeds);
    const embedding = (await found['embedding']!.getData()) as Float32Array;
    return { hidden: { values: found['hidden']!, layer: 0 }, embedding, ms };
  }

  async segment(layer: number, hidden: Hidden, ids: Ids): ReturnType<Engine['segment']> {
    const feeds = { hidden: hidden.values as ort.Tensor, attention_mask: integers(ids.ids.map(() => 1)) };
    const { found, ms } = await this.run(segmentName(layer), feeds);
    const logits = (await found['logits']!.getData()) as Float32Array;
    return { hidden: { values: found['next_hidden']!, layer }, logits, ms };
  }

  /** Run one graph after the other: the runtime has one heap. */
  private async run(
    name: string,
    feeds: Record<string, ort.Tensor>,
  ): Promise<{ found: ort.InferenceSession.ReturnType; ms: number }> {
    const before = this.turn;
    let done = (): void => undefined;
    this.turn = new Promise<void>((resolve) => (done = resolve));
    await before;
    try {
      const began = performance.now();
      const found = await this.sessions.get(name)!.run(feeds);
      return { found, ms: performance.now() - began };
    } finally {
      done();
    }
  }
}

function integers(values: readonly number[]): ort.Tensor {
  return new ort.Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
}
