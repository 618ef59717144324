import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { WebFiles, readManifest } from '../src/device/bundle.js';
import { Device } from '../src/device/device.js';
import { BundleError } from '../src/device/errors.js';
import { HALVES, readTensors, valuesOf } from '../src/device/safetensors.js';
import { serve } from './server.js';

const FILE = Buffer.from('the bytes of a graph');

function manifestOf(files: Record<string, Buffer>, policy = 'dimec-cascade'): Record<string, unknown> {
  const infos = Object.entries(files).map(([name, file]) => [
    name,
    { sha256: createHash('sha256').update(file).digest('hex'), bytes: file.length },
  ]);
  const costs = {
    mobile_layer: 1.5,
    edge_layer: 1,
    cloud_layer: 1,
    cloud_request: 0,
    to_edge: 2.5,
    to_cloud: 3,
    exit_zero: 0.04,
    mobile_work: 1,
    edge_work: 1,
  };
  return {
    format: 1,
    tier: 'mobile',
    layers: [1, 2],
    n_layers: 6,
    label_names: ['no', 'yes'],
    task: { name: 'sst2', metric: 'accuracy', pairs: false },
    inputs: ['input_ids', 'attention_mask'],
    n_vocabulary: 100,
    max_length: 128,
    policy,
    depths: { mobile: 2, edge: 3, cloud: 6 },
    costs: { ...costs, state_to_edge: 0, state_to_cloud: 0, held_against: 'mobile' },
    quantized: true,
    model_fingerprint: `sha256:${'a'.repeat(64)}`,
    files: Object.fromEntries(infos) as Record<string, unknown>,
  };
}

/** Serve a bundle whose manifest was made of other files, where these are given. */
async function bundle(
  files: Record<string, Buffer>,
  manifest = manifestOf(files),
): Promise<{ url: string; asked: string[] }> {
  const asked: string[] = [];
  const url = await serve((request, response) => {
    const name = new URL(request.url ?? '', 'http://x').pathname.slice(1);
    asked.push(name);
    if (name === 'manifest.json') response.end(JSON.stringify(manifest));
    else if (files[name]) response.end(files[name]);
    else response.writeHead(404).end();
  });
  return { url, asked };
}

test('a file is what its hash says, and its bytes are counted', async () => {
  const { url } = await bundle({ 'a.onnx': FILE });
  const seen: number[] = [];
  const files = await WebFiles.open(url, fetch, ({ done }) => seen.push(done));
  expect(Buffer.from(await files.read('a.onnx'))).toEqual(FILE);
  expect(seen.at(-1)).toBe(FILE.length);
  expect(files.kept).toBe(false); // There is no cache storage here.
});

test.each([
  ['other bytes', Buffer.from('the bytes of a grapf')],
  ['fewer bytes', FILE.subarray(1)],
  ['more bytes', Buffer.concat([FILE, FILE])],
] as const)('a file of %s is refused', async (_what, file) => {
  const { url } = await bundle({ 'a.onnx': file }, manifestOf({ 'a.onnx': FILE }));
  const files = await WebFiles.open(url, fetch);
  await expect(files.read('a.onnx')).rejects.toThrow(BundleError);
});

test('a file that the manifest does not list is not asked for', async () => {
  const { url, asked } = await bundle({ 'a.onnx': FILE });
  const files = await WebFiles.open(url, fetch);
  await expect(files.read('b.onnx')).rejects.toThrow(/b\.onnx/);
  expect(asked).toEqual(['manifest.json']);
});

test('a missing bundle, or one that is no JSON, is refused in a sentence', async () => {
  const url = await serve((request, response) => {
    if (request.url === '/html/manifest.json') response.end('<html>');
    else response.writeHead(404).end();
  });
  await expect(WebFiles.open(`${url}/none/`, fetch)).rejects.toThrow(/HTTP 404/);
  await expect(WebFiles.open(`${url}/html/`, fetch)).rejects.toThrow(BundleError);
});

test.each([
  ['format', 2],
  ['tier', 'edge'],
  ['label_names', ['one']],
  ['files', { '../manifest.json': { sha256: 'a'.repeat(64), bytes: 1 } }],
  ['costs', { mobile_layer: -1 }],
])('a manifest with another %s is refused', (field, value) => {
  expect(() => readManifest({ ...manifestOf({}), [field]: value })).toThrow(BundleError);
});

test('a policy that is not known is refused in one sentence, before the graphs are fetched', async () => {
  const empty = Buffer.alloc(10);
  empty.writeBigUInt64LE(2n);
  empty.write('{}', 8);
  const files = { 'policy.json': Buffer.from('{"format": 1, "policies": {}}'), 'policy.safetensors': empty };
  const others = {
    'tokenizer.json': FILE,
    'exit-zero.safetensors': FILE,
    'embedding.onnx': FILE,
    'segment-1.onnx': FILE,
    'segment-2.onnx': FILE,
  };
  const { url, asked } = await bundle(files, manifestOf({ ...files, ...others }, 'splitee'));
  await expect(Device.open({ bundle: url })).rejects.toThrow(
    /^the bundle's policy is splitee, which a browser cannot run: [^.]+$/,
  );
  expect(asked).toEqual(['manifest.json', 'policy.json', 'policy.safetensors']);
});

test('tensors are read by their header, which may not lie', () => {
  const file = (header: unknown, data: Buffer): ArrayBuffer => {
    const text = Buffer.from(JSON.stringify(header));
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(text.length));
    return new Uint8Array(Buffer.concat([length, text, data])).buffer;
  };
  const data = Buffer.from(new Float32Array([1.5, -2]).buffer);
  const good = readTensors(
    'x',
    file({ a: { dtype: 'F32', shape: [2], data_offsets: [0, 8] }, __metadata__: { dimec: '{"format": 1}' } }, data),
  );
  expect([...valuesOf(good.arrays.get('a')!, 'F32')]).toEqual([1.5, -2]);
  expect(good.header).toEqual({ format: 1 });
  for (const entry of [
    { dtype: 'F32', shape: [3], data_offsets: [0, 8] },
    { dtype: 'F32', shape: [3], data_offsets: [0, 12] },
    { dtype: 'F32', shape: [-2], data_offsets: [8, 0] },
    { dtype: 'F99', shape: [2], data_offsets: [0, 8] },
  ])
    expect(() => readTensors('x', file({ a: entry }, data))).toThrow(BundleError);
  expect(() => readTensors('x', new ArrayBuffer(4))).toThrow(BundleError);
});

test('half-precision numbers are those of IEEE 754', () => {
  expect([0x3c00, 0xc000, 0x7bff, 0x0001, 0x0400, 0x3555].map((bits) => HALVES[bits])).toEqual(
    [1, -2, 65_504, 2 ** -24, 2 ** -14, 0.333251953125].map(Math.fround),
  );
  expect(HALVES[0x7c00]).toBe(Infinity);
  expect(HALVES[0x7e00]).toBeNaN();
});
