/** Exit zero: the classifier before the first layer, as docs/reference/bundle.md defines it. */
import * as v from 'valibot';
import { BundleError } from './errors.js';
import { HALVES, type Tensor, type Tensors, valuesOf } from './safetensors.js';

const ONE = 0x9e3779b1;
const TWO = 0x85ebca6b;
const FIRST = 0xc2b2ae35;
const SECOND = 0x27d4eb2f;
const OVERLAP = 0x165667b1;
const N_BUCKETS = 1 << 18;
const SHIFT = 14;
const SHORTEST = 1e-3;

const Header = v.object({ format: v.literal(1), frame: v.array(v.number()), pairs: v.boolean() });

interface DensePart {
  readonly vectors: Uint16Array;
  readonly shares: Uint16Array;
  readonly hidden: Float32Array;
  readonly hiddenBias: Float32Array;
  readonly output: Float32Array;
  readonly width: number;
  readonly units: number;
}

export class ExitZero {
  private constructor(
    private readonly weights: Uint16Array,
    private readonly squares: Uint16Array,
    private readonly bias: Float32Array,
    private readonly frame: ReadonlySet<number>,
    private readonly pairs: boolean,
    private readonly dense: DensePart | null,
  ) {}

  static of({ header, arrays }: Tensors, nClasses: number): ExitZero {
    const told = v.safeParse(Header, header);
    if (!told.success) throw fault('its header is not of format 1');
    const { frame, pairs } = told.output;
    const weights = valuesOf(shaped(arrays, 'weights', [N_BUCKETS, nClasses]), 'F16');
    const squares = valuesOf(shaped(arrays, 'squares', [N_BUCKETS]), 'F16');
    const bias = valuesOf(shaped(arrays, 'bias', [nClasses]), 'F32');
    return new ExitZero(weights, squares, bias, new Set(frame), pairs, denseOf(arrays, nClasses));
  }

  /** Read a text by all of its token ids; return the logits and the share of its features that are unknown. */
  read(ids: readonly number[]): { logits: Float32Array; unseen: number } {
    const buckets = features(ids, this.frame, this.pairs);
    const n = this.bias.length;
    const sums = new Float64Array(n);
    let square = 0;
    let nothing = 0;
    for (const bucket of buckets) {
      let known = false;
      for (let place = 0; place < n; place += 1) {
        const weight = half(this.weights, bucket * n + place);
        known ||= weight !== 0;
        sums[place]! += weight;
      }
      square += half(this.squares, bucket);
      if (!known) nothing += 1;
    }
    const length = Math.max(Math.sqrt(square), SHORTEST);
    const logits = Float32Array.from(sums, (sum, place) => sum / length + this.bias[place]!);
    if (this.dense) addDense(this.dense, ids, logits);
    return { logits, unseen: Math.fround(nothing / Math.max(buckets.length, 1)) };
  }
}

function addDense(part: DensePart, ids: readonly number[], logits: Float32Array): void {
  const { width, units } = part;
  const last = part.shares.length - 1;
  const mean = new Float32Array(width);
  let total = 0;
  for (const id of ids) {
    const row = Math.min(id, last);
    const share = half(part.shares, row);
    if (share === 0) continue;
    total += share;
    for (let place = 0; place < width; place += 1) mean[place]! += share * half(part.vectors, row * width + place);
  }
  total = Math.max(total, SHORTEST);
  const raised = new Float64Array(units);
  for (let place = 0; place < width; place += 1) {
    const value = mean[place]! / total;
    for (let unit = 0; unit < units; unit += 1) raised[unit]! += value * part.hidden[place * units + unit]!;
  }
  for (let unit = 0; unit < units; unit += 1) {
    const value = Math.tanh(raised[unit]! + part.hiddenBias[unit]!);
    for (let place = 0; place < logits.length; place += 1)
      logits[place]! += value * part.output[unit * logits.length + place]!;
  }
}

/** Return the buckets of a text's features, the same one as often as it occurs. */
export function features(ids: readonly number[], frame: ReadonlySet<number>, pairs: boolean): number[] {
  const { ones, twos } = hashes(ids);
  if (!pairs) return [...ones, ...twos].map((each) => each >>> SHIFT);
  const [start, border, after, last] = sides(ids, frame);
  const found: number[] = [];
  [ones, twos].forEach((all, kind) => {
    const a = new Set(all.slice(start, Math.max(border - kind, start)));
    const b = new Set(all.slice(after, Math.max(last - kind, after)));
    let shared = 0;
    for (const each of a) {
      if (b.has(each)) {
        shared += 1;
        found.push(each);
      } else found.push((each ^ FIRST) >>> 0);
    }
    for (const each of b) if (!a.has(each)) found.push((each ^ SECOND) >>> 0);
    [a.size + b.size - shared, a.size, b.size].forEach((whole, which) => {
      const quotient = whole ? Math.floor((10 * shared) / whole) : 10;
      found.push((((3 * kind + which) * 64 + quotient) ^ OVERLAP) >>> 0);
    });
  });
  const difference = Math.min(Math.max(border - start - (last - after) + 32, 0), 63);
  found.push(((384 + difference) ^ OVERLAP) >>> 0);
  return found.map((each) => Math.imul(each, TWO) >>> SHIFT);
}

function hashes(ids: readonly number[]): { ones: number[]; twos: number[] } {
  const ones = ids.map((id) => Math.imul(id + 1, ONE) >>> 0);
  const twos = ids.slice(1).map((id, place) => Math.imul(Math.imul(id, TWO) ^ ones[place]!, ONE) >>> 0);
  return { ones, twos };
}

/** Return where the first text of a pair starts and ends, and where the second one does. */
function sides(ids: readonly number[], frame: ReadonlySet<number>): [number, number, number, number] {
  let start = 0;
  let last = ids.length;
  while (start < last && frame.has(ids[start]!)) start += 1;
  while (last > start && frame.has(ids[last - 1]!)) last -= 1;
  let border = start;
  while (border < last && !frame.has(ids[border]!)) border += 1;
  let after = border;
  while (after < last && frame.has(ids[after]!)) after += 1;
  return [start, border, after, last];
}

function half(values: Uint16Array, place: number): number {
  return HALVES[values[place]!]!;
}

function denseOf(arrays: Tensors['arrays'], nClasses: number): DensePart | null {
  if (!arrays.has('vectors')) return null;
  const [n, width] = dimensions(arrays, 'vectors');
  const [, units] = dimensions(arrays, 'hidden');
  const part = {
    vectors: valuesOf(shaped(arrays, 'vectors', [n, width]), 'F16'),
    shares: valuesOf(shaped(arrays, 'shares', [n]), 'F16'),
    hidden: valuesOf(shaped(arrays, 'hidden', [width, units]), 'F32'),
    hiddenBias: valuesOf(shaped(arrays, 'hidden_bias', [units]), 'F32'),
    output: valuesOf(shaped(arrays, 'output', [units, nClasses]), 'F32'),
  };
  return { ...part, width, units };
}

function dimensions(arrays: Tensors['arrays'], name: string): [number, number] {
  const shape = arrays.get(name)?.shape;
  if (shape?.length !== 2 || !shape[0] || !shape[1]) throw fault(`its array ${name} has no two dimensions`);
  return [shape[0], shape[1]];
}

function shaped(arrays: Tensors['arrays'], name: string, shape: readonly number[]): Tensor {
  const found = arrays.get(name);
  if (!found || found.shape.join() !== shape.join())
    throw fault(`its array ${name} is ${found ? found.shape.join(' × ') : 'missing'}, not ${shape.join(' × ')}`);
  return found;
}

function fault(why: string): BundleError {
  return new BundleError(`exit-zero.safetensors cannot be read, ${why}: export the bundle again`);
}
