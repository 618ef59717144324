/** What a device and a tier's server say to each other: the Open Inference Protocol v2 with binary tensors. */
import * as v from 'valibot';
import { HALVES } from './safetensors.js';

export const HEADER_LENGTH = 'Inference-Header-Content-Length';
export const REQUEST_ID = 'x-request-id';

/** What the protocol or its limits do not allow. */
export class WireError extends Error {
  override name = 'WireError';
}

export interface Request {
  readonly id: string;
  readonly parameters: Readonly<Record<string, string | number>>;
  /** [1, length] integers by the names of the graphs' inputs. */
  readonly inputs: Readonly<Record<string, readonly number[]>>;
  /** Whether integers go in the narrowest type that holds them, which our servers take. */
  readonly narrow: boolean;
}

type Integers = BigInt64Array | Uint8Array | Uint16Array | Uint32Array;

function packed(values: readonly number[], narrow: boolean): [string, Integers] {
  const most = Math.max(0, ...values);
  if (!narrow || most >= 2 ** 32) return ['INT64', BigInt64Array.from(values, BigInt)];
  if (most < 2 ** 8) return ['UINT8', Uint8Array.from(values)];
  return most < 2 ** 16 ? ['UINT16', Uint16Array.from(values)] : ['UINT32', Uint32Array.from(values)];
}

/** Return the headers and the body of a request; browsers run on little-endian machines alone, as the wire wants. */
export function encodeRequest(request: Request): { headers: Record<string, string>; body: Uint8Array<ArrayBuffer> } {
  const tensors = Object.entries(request.inputs).map(([name, values]) => {
    const [datatype, array] = packed(values, request.narrow);
    const parameters = { binary_data_size: array.byteLength };
    return { head: { name, datatype, shape: [1, values.length], parameters }, array };
  });
  const document = {
    id: request.id,
    parameters: { ...request.parameters, binary_data_output: true },
    inputs: tensors.map((each) => each.head),
  };
  const head = new TextEncoder().encode(JSON.stringify(document));
  const size = tensors.reduce((sum, each) => sum + each.array.byteLength, head.length);
  const body = new Uint8Array(size);
  body.set(head);
  let at = head.length;
  for (const { array } of tensors) {
    body.set(new Uint8Array(array.buffer), at);
    at += array.byteLength;
  }
  const headers = {
    'Content-Type': 'application/octet-stream',
    [HEADER_LENGTH]: String(head.length),
    [REQUEST_ID]: request.id,
  };
  return { headers, body };
}

export interface Output {
  readonly datatype: string;
  readonly shape: readonly number[];
  readonly values: Float32Array;
}

export interface Response {
  readonly id: string;
  readonly parameters: Readonly<Record<string, unknown>>;
  readonly outputs: ReadonlyMap<string, Output>;
}

const size = v.pipe(v.number(), v.safeInteger(), v.minValue(0), v.maxValue(4 * 2 ** 20));
const Parameters = v.pipe(
  v.record(v.string(), v.union([v.string(), v.number(), v.boolean()])),
  v.check((found) => Object.keys(found).length <= 64, 'more than 64 parameters'),
);
const TensorDocument = v.object({
  name: v.pipe(v.string(), v.minLength(1), v.maxLength(65_536)),
  datatype: v.string(),
  shape: v.pipe(v.array(size), v.maxLength(8)),
  parameters: v.optional(Parameters, {}),
  data: v.optional(v.array(v.nullable(v.number()))),
});
const ResponseDocument = v.object({
  id: v.optional(v.pipe(v.string(), v.maxLength(65_536)), ''),
  parameters: v.optional(Parameters, {}),
  outputs: v.pipe(v.array(TensorDocument), v.minLength(1), v.maxLength(16)),
});
const FLOATS: Readonly<Record<string, number>> = { FP16: 2, FP32: 4, FP64: 8 };

/** Read a response whose body is bounded already; tensors are those of floating-point numbers. */
export function decodeResponse(headerLength: string | null, body: Uint8Array): Response {
  let length = body.length;
  if (headerLength !== null) {
    length = /^\d{1,19}$/.test(headerLength) ? Number(headerLength) : Infinity;
    if (length > body.length)
      throw new WireError(`${HEADER_LENGTH} is not the length of a document in a body of ${body.length} bytes`);
  }
  const document = parseJson(body.subarray(0, length));
  const found = v.safeParse(ResponseDocument, document);
  if (!found.success)
    throw new WireError(`${v.getDotPath(found.issues[0]) ?? 'the message'}: ${found.issues[0].message}`);
  const raw = body.subarray(length);
  const outputs = new Map<string, Output>();
  let at = 0;
  for (const { name, datatype, shape, parameters, data } of found.output.outputs) {
    if (outputs.has(name)) throw new WireError(`tensor ${name} comes twice`);
    const width = FLOATS[datatype];
    if (width === undefined) throw new WireError(`tensor ${name} has datatype ${datatype}: only floats are read`);
    const count = shape.reduce((product, each) => product * each, 1);
    const given = parameters['binary_data_size'];
    if (count > 4 * 2 ** 20) throw new WireError(`tensor ${name} has more values than are taken`);
    if (given === undefined) {
      if (data?.length !== count) throw new WireError(`the data of tensor ${name} does not fit its shape`);
      outputs.set(name, { datatype, shape, values: Float32Array.from(data, (each) => each ?? NaN) });
      continue;
    }
    if (data || given !== count * width || at + given > raw.length)
      throw new WireError(`the binary data of tensor ${name} does not fit its shape`);
    outputs.set(name, { datatype, shape, values: floats(datatype, raw.slice(at, at + given)) });
    at += given;
  }
  if (at !== raw.length) throw new WireError(`${raw.length} bytes follow the document, its tensors name ${at}`);
  return { id: found.output.id, parameters: found.output.parameters, outputs };
}

function floats(datatype: string, { buffer }: Uint8Array<ArrayBuffer>): Float32Array {
  if (datatype === 'FP32') return new Float32Array(buffer);
  if (datatype === 'FP64') return Float32Array.from(new Float64Array(buffer));
  return Float32Array.from(new Uint16Array(buffer), (bits) => HALVES[bits]!);
}

/** Read JSON of a stranger. */
export function parseJson(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes)) as unknown;
  } catch {
    throw new WireError('the message is no JSON document');
  }
}

/** Return the parameter that says at which confidence a row leaves each exit, Infinity for never. */
export function encodeThresholds(thresholds: readonly number[]): string | number {
  const [first] = thresholds;
  if (first !== undefined && Number.isFinite(first) && thresholds.every((each) => each === first)) return first;
  return JSON.stringify(thresholds.map((each) => (Number.isFinite(each) ? each : null)));
}

/** Return the ascending layers that parameters name; null where they name none. */
export function saidLayers(parameters: Readonly<Record<string, unknown>>): number[] | null {
  let said = parameters['layers'];
  try {
    if (typeof said === 'string') said = JSON.parse(said) as unknown;
  } catch {
    return null;
  }
  const layers = v.safeParse(v.pipe(v.array(v.pipe(v.number(), v.integer())), v.minLength(1)), said);
  if (!layers.success) return null;
  const found = layers.output;
  return found.every((each, place) => place === 0 || each > found[place - 1]!) ? found : null;
}
