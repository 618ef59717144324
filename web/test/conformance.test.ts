/** Replays the file that Python writes (conformance/README.md): the same readings, decisions, costs and requests. */
import { existsSync, readdirSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { type IncomingMessage, type Server, type ServerResponse, createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Device, type DeviceOptions } from '../src/device/device.js';
import { BundleError } from '../src/device/errors.js';
import { HEADER_LENGTH } from '../src/device/wire.js';
import { softmax } from '../src/device/tiers.js';
import type { Text } from '../src/device/tokens.js';
import { answer, documentOf } from './server.js';

const FOLDER = process.env['DIMEC_CONFORMANCE'] ?? fileURLToPath(new URL('../../build/conformance', import.meta.url));
const FILE = `${FOLDER}/conformance.json`;
const TOLERANCE = 1e-4;
const INT8_TOLERANCE = 0.05;

type Behaviour = string | { status: number; headers?: Record<string, string> };
type ServedTier = 'edge' | 'cloud';

interface Readings {
  texts: Text[];
  tokens: { input_ids: number[]; attention_mask: number[]; token_type_ids: number[]; whole: number[] }[];
  embeddings: number[][];
  unseen: number[];
  logits: Record<'mobile' | ServedTier, Record<string, number[][]>>;
}

interface Expected {
  text: number;
  label: string;
  confidence: number;
  probabilities: number[];
  tier: string;
  layer: number;
  cost: number;
  steps: [string, number][];
  degraded: string | null;
}

interface Run {
  name: string;
  policy: string;
  bundle: string;
  settings: Partial<Record<'deadline_ms' | 'attempts' | 'backoff_ms' | 'opens_after' | 'open_s' | 'probe_ms', number>>;
  servers: Partial<Record<ServedTier, 'down' | Behaviour[]>>;
  answers: Expected[];
  exit_thresholds: Partial<Record<ServedTier, (number | string | null)[]>>;
  learnt: { sums: number[][]; counts: number[] } | null;
}

interface Suite {
  name: string;
  model_fingerprint: string;
  layers: Record<ServedTier, number[]>;
  readings: Readings;
  runs: Run[];
  unknown: string[];
}

const document = existsSync(FILE)
  ? (JSON.parse(await readFile(FILE, 'utf-8')) as { format: number; suites: Suite[] })
  : null;
if (!document && process.env['DIMEC_STRICT'] === '1')
  throw new Error(`${FILE} is missing: write it by python -m tests.conformance`);

/** Serves the folder's files, as a site does. */
let files: Server;
let site = '';

beforeAll(async () => {
  files = createServer((request, response) => {
    const path = decodeURIComponent(new URL(request.url ?? '', 'http://x').pathname);
    readFile(`${FOLDER}${path}`).then(
      (file) => response.end(file),
      () => response.writeHead(404).end(),
    );
  });
  site = await listening(files);
});
afterAll(() => files.close());

async function listening(server: Server): Promise<string> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

describe.skipIf(!document)('conformance', () => {
  test('the file is of this format', () => expect(document?.format).toBe(1));

  for (const suite of document?.suites ?? []) {
    const tolerance = suite.name === 'int8' ? INT8_TOLERANCE : TOLERANCE;

    test(`${suite.name}: tokens, embeddings and logits are those of Python`, async () => {
      const device = await opened(
        suite.runs[0]?.bundle ?? `${suite.name}/${readdirSync(`${FOLDER}/${suite.name}`)[0]}`,
      );
      const { readings } = suite;
      for (const [place, text] of readings.texts.entries()) {
        const said = readings.tokens[place]!;
        const encoded = device.tokenizer.encode(text);
        expect(encoded.ids, `ids of text ${place}`).toEqual(said.input_ids);
        expect(encoded.whole, `whole of text ${place}`).toEqual(said.whole);
        if (device.manifest.inputs.includes('token_type_ids')) expect(encoded.types).toEqual(said.token_type_ids);
        const { logits, unseen } = device.exitZero.read(encoded.whole);
        near(logits, readings.logits.mobile['0']![place]!, TOLERANCE, `exit zero of text ${place}`);
        near([unseen], [readings.unseen[place]!], 1e-7, `unseen share of text ${place}`);
        const embedded = await device.engine.embed(encoded);
        near(embedded.embedding, readings.embeddings[place]!, tolerance, `embedding of text ${place}`);
        let { hidden } = embedded;
        for (const layer of device.manifest.layers) {
          const found = await device.engine.segment(layer, hidden, encoded);
          near(found.logits, readings.logits.mobile[layer]![place]!, tolerance, `layer ${layer} of text ${place}`);
          hidden = found.hidden;
        }
      }
    });

    for (const run of suite.runs) test(`${suite.name}: ${run.name}`, () => replayed(suite, run));

    for (const folder of suite.unknown)
      test(`${suite.name}: ${folder} is refused in one sentence`, async () => {
        const refusal = await opened(folder).then(
          () => null,
          (error: unknown) => error,
        );
        expect(refusal).toBeInstanceOf(BundleError);
        expect((refusal as Error).message).not.toMatch(/[.\n]./);
      });
  }
});

/** Opened bundles, whose graphs other runs share. */
const bundles = new Map<string, Device>();

async function opened(folder: string, options: Omit<DeviceOptions, 'bundle'> = {}): Promise<Device> {
  const url = `${site}/${folder}/mobile/`;
  const found = bundles.get(folder);
  if (!found || found.policy.learns) {
    const device = await Device.open({ bundle: url, ...options });
    bundles.set(folder, device);
    return device;
  }
  const { manifest, policy, tokenizer, exitZero, engine } = found;
  return Device.of({ manifest, policy, tokenizer, exitZero, engine }, options);
}

async function replayed(suite: Suite, run: Run): Promise<void> {
  const thresholds: Partial<Record<ServedTier, (number | string | null)[]>> = {};
  const servers: Server[] = [];
  const urls: Partial<Record<ServedTier, string>> = {};
  for (const tier of ['edge', 'cloud'] as const) {
    const behaviour = run.servers[tier];
    if (!behaviour) continue;
    thresholds[tier] = [];
    const server = createServer(tierOf(suite, tier, behaviour === 'down' ? [] : behaviour, thresholds[tier]));
    // It keeps its port: what is closed may come back as the port of the next server.
    if (behaviour === 'down') server.on('connection', (socket) => socket.destroy());
    urls[tier] = await listening(server);
    servers.push(server);
  }
  try {
    const { settings } = run;
    const device = await opened(run.bundle, {
      ...urls,
      settings: {
        ...(settings.deadline_ms !== undefined && { deadlineMs: settings.deadline_ms }),
        ...(settings.attempts !== undefined && { attempts: settings.attempts }),
        ...(settings.backoff_ms !== undefined && { backoffMs: settings.backoff_ms }),
        ...(settings.opens_after !== undefined && { opensAfter: settings.opens_after }),
        ...(settings.open_s !== undefined && { openMs: 1_000 * settings.open_s }),
        ...(settings.probe_ms !== undefined && { probeMs: settings.probe_ms }),
      },
    });
    for (const [place, expected] of run.answers.entries()) {
      const found = await device.classify(suite.readings.texts[expected.text]!);
      const what = `answer ${place}`;
      expect(
        {
          label: found.label,
          tier: found.tier,
          layer: found.layer,
          steps: found.steps.map((each) => [each.tier, each.layer]),
          degraded: withoutDetails(found.degraded),
        },
        what,
      ).toEqual({
        label: expected.label,
        tier: expected.tier,
        layer: expected.layer,
        steps: expected.steps,
        degraded: expected.degraded,
      });
      near([found.cost, found.confidence], [expected.cost, expected.confidence], TOLERANCE, what);
      near(found.probabilities, expected.probabilities, TOLERANCE, what);
    }
    for (const tier of ['edge', 'cloud'] as const)
      if (run.exit_thresholds[tier]) numbersNear(thresholds[tier] ?? [], run.exit_thresholds[tier], tier);
    const learnt = device.policy.learnt();
    expect(learnt === null).toBe(run.learnt === null);
    if (learnt && run.learnt) {
      near(learnt.sums, run.learnt.sums.flat(), 1e-3, 'sums');
      expect([...learnt.counts]).toEqual(run.learnt.counts);
    }
  } finally {
    for (const server of servers) {
      server.closeAllConnections();
      server.close();
    }
  }
}

/** Degraded answers say in brackets what differs from client to client. */
function withoutDetails(degraded: string | null): string | null {
  return degraded?.replace(/ \((?:[^()]|\([^()]*\))*\)/g, '') ?? null;
}

function near(found: ArrayLike<number>, expected: readonly number[], tolerance: number, what: string): void {
  expect(found.length, what).toBe(expected.length);
  const off = Math.max(0, ...expected.map((each, place) => Math.abs(each - found[place]!)));
  expect(off, what).toBeLessThanOrEqual(tolerance);
}

/** Thresholds are numbers, or lists of them as JSON, whose digits may differ. */
function numbersNear(
  found: readonly (number | string | null)[],
  expected: readonly (number | string | null)[],
  what: string,
): void {
  const plain = (each: number | string | null): unknown =>
    typeof each === 'string' ? (JSON.parse(each) as unknown) : each;
  expect(found.map(plain), what).toEqual(expected.map(plain));
}

/** Make a server that behaves as an entry says, one for each request. */
function tierOf(
  suite: Suite,
  tier: ServedTier,
  behaviours: readonly Behaviour[],
  thresholds: (number | string | null)[],
) {
  const { readings, model_fingerprint: fingerprint } = suite;
  const layers = suite.layers[tier];
  let n = 0;
  const infer = (request: IncomingMessage, response: ServerResponse, body: Buffer): void => {
    const behaviour = behaviours[Math.min(n, behaviours.length - 1)]!;
    n += 1;
    const said = documentOf(request, body);
    const threshold = (said.parameters['exit_threshold'] as number | string | undefined) ?? null;
    thresholds.push(threshold);
    if (behaviour === 'hangs') return;
    if (behaviour === 'closes') {
      request.socket.destroy();
      return;
    }
    if (typeof behaviour === 'object') {
      response.writeHead(behaviour.status, behaviour.headers).end();
      return;
    }
    const ids = idsOf(said, request, body).join();
    const place = readings.tokens.findIndex((each) => each.input_ids.join() === ids);
    const exits = behaviour === 'too few exits' ? layers.slice(0, -1) : layers;
    const rows = exits.map((layer) => readings.logits[tier][layer]![place]!);
    const logits = behaviour === 'not finite' ? rows.flat().map(() => NaN) : early(rows, threshold).flat();
    const parameters = {
      model_fingerprint: behaviour === 'another model' ? `sha256:${'0'.repeat(64)}` : fingerprint,
      layers: JSON.stringify(behaviour === 'other layers' ? layers.map((each) => each + 1) : layers),
    };
    answer(
      response,
      behaviour === 'another request' ? 'other' : said.id,
      logits,
      [1, exits.length, rows[0]!.length],
      parameters,
    );
  };
  return (request: IncomingMessage, response: ServerResponse): void => {
    const parts: Buffer[] = [];
    request.on('data', (part: Buffer) => parts.push(part));
    request.on('end', () => {
      if (request.method === 'POST') infer(request, response, Buffer.concat(parts));
      else response.end(JSON.stringify({ name: tier, parameters: { layers: JSON.stringify(layers) } }));
    });
  };
}

/** Behind the first exit that is sure enough there are NaN. */
function early(rows: readonly number[][], threshold: number | string | null): number[][] {
  const given =
    typeof threshold === 'string' ? (JSON.parse(threshold) as (number | null)[]) : rows.map(() => threshold);
  const end = rows.findIndex((row, place) => {
    const enough = given[place];
    return enough !== null && enough !== undefined && Math.max(...softmax(row)) >= enough;
  });
  return rows.map((row, place) => (end >= 0 && place > end ? row.map(() => NaN) : row));
}

/** Return the values of `input_ids` of a request. */
function idsOf(said: ReturnType<typeof documentOf>, request: IncomingMessage, body: Buffer): number[] {
  let at = Number(request.headers[HEADER_LENGTH.toLowerCase()]);
  const widths: Record<string, number> = { UINT8: 1, UINT16: 2, UINT32: 4, INT64: 8 };
  for (const { name, datatype, shape } of said.inputs) {
    const width = widths[datatype]!;
    const length = shape[1]!;
    if (name === 'input_ids')
      return Array.from({ length }, (_, place) => {
        const from = at + place * width;
        return width === 8 ? Number(body.readBigInt64LE(from)) : body.readUIntLE(from, width);
      });
    at += width * length;
  }
  return [];
}
