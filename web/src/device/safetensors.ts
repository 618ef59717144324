/** Arrays of a safetensors file, as views of its bytes. */
import * as v from 'valibot';
import { BundleError } from './errors.js';

export interface Tensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

export interface Tensors {
  /** The JSON of the metadata entry `dimec`; null where there is none. */
  readonly header: unknown;
  readonly arrays: ReadonlyMap<string, Tensor>;
}

const WIDTHS: Readonly<Record<string, number>> = { F16: 2, F32: 4, F64: 8, I64: 8, I32: 4, I16: 2, I8: 1, U8: 1 };
const whole = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
const Entry = v.object({ dtype: v.string(), shape: v.array(whole), data_offsets: v.tuple([whole, whole]) });
const Header = v.record(v.string(), v.unknown());
const Metadata = v.optional(v.object({ dimec: v.optional(v.string()) }));

/** Read a file; `name` is what messages call it. */
export function readTensors(name: string, file: ArrayBuffer): Tensors {
  try {
    const view = new DataView(file);
    const length = Number(view.getBigUint64(0, true));
    if (length > file.byteLength - 8) throw new Error('its header is cut off');
    const text = new TextDecoder('utf-8', { fatal: true }).decode(new Uint8Array(file, 8, length));
    const { __metadata__: metadata, ...entries } = v.parse(Header, JSON.parse(text));
    const arrays = new Map<string, Tensor>();
    for (const [key, value] of Object.entries(entries)) {
      const {
        dtype,
        shape,
        data_offsets: [begin, end],
      } = v.parse(Entry, value);
      const width = WIDTHS[dtype];
      const size = shape.reduce((product, each) => product * each, width ?? NaN);
      if (end - begin !== size || 8 + length + end > file.byteLength) throw new Error(`array ${key} does not fit`);
      arrays.set(key, { dtype, shape, bytes: new Uint8Array(file, 8 + length + begin, size) });
    }
    const own = v.parse(Metadata, metadata)?.dimec;
    return { header: own === undefined ? null : JSON.parse(own), arrays };
  } catch (error) {
    throw new BundleError(`${name} is no safetensors file (${(error as Error).message}): export the bundle again`);
  }
}

/** Return an array's values, copied, since a view needs an aligned start; F16 stays as its bits. */
export function valuesOf(tensor: Tensor, dtype: 'F16'): Uint16Array;
export function valuesOf(tensor: Tensor, dtype: 'F32'): Float32Array;
export function valuesOf(tensor: Tensor, dtype: 'F64'): Float64Array;
export function valuesOf(tensor: Tensor, dtype: 'I64'): BigInt64Array;
export function valuesOf(tensor: Tensor, dtype: string): ArrayBufferView {
  if (tensor.dtype !== dtype)
    throw new BundleError(`an array is ${tensor.dtype}, not ${dtype}: export the bundle again`);
  const buffer = tensor.bytes.slice().buffer;
  if (dtype === 'F16') return new Uint16Array(buffer);
  if (dtype === 'F32') return new Float32Array(buffer);
  return dtype === 'F64' ? new Float64Array(buffer) : new BigInt64Array(buffer);
}

/** What every pattern of 16 bits means as a floating-point number. */
export const HALVES: Float32Array = (() => {
  const table = new Float32Array(65_536);
  for (let bits = 0; bits < 65_536; bits += 1) {
    const sign = bits >> 15 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    if (exponent === 31) table[bits] = fraction ? NaN : sign * Infinity;
    else table[bits] = sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
  }
  return table;
})();
