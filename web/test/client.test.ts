import { expect, test } from 'vitest';
import { type Ask, TierClient, checkedToken, checkedUrl } from '../src/device/client.js';
import { OptionError } from '../src/device/errors.js';
import { DEFAULTS, type Settings } from '../src/device/settings.js';
import { type Handler, answer, documentOf, serve } from './server.js';

const FINGERPRINT = `sha256:${'a'.repeat(64)}`;
const OURS = { model_fingerprint: FINGERPRINT, layers: '[1, 2]' };
const INPUTS = { input_ids: [101, 30_000, 102], attention_mask: [1, 1, 1] };

function asking(overrides: Partial<Ask> = {}): Ask {
  return { inputs: INPUTS, requestId: 'text-0', layer: 2, leaves: new Map(), budgetMs: 2_000, ...overrides };
}

/** Make a client of a server that says its layers, and answers requests by a handler. */
async function clientOf(
  handler: Handler,
  settings: Partial<Settings> = {},
): Promise<{ client: TierClient; paths: string[] }> {
  const paths: string[] = [];
  const url = await serve((request, response, body) => {
    paths.push(request.url ?? '');
    if (request.method === 'GET') {
      response.end(JSON.stringify({ name: 'edge', parameters: { layers: '[1, 2]' } }));
      return;
    }
    handler(request, response, body);
  });
  const client = new TierClient('edge', url, FINGERPRINT, 2, { ...DEFAULTS, backoffMs: 1, ...settings }, fetch);
  return { client, paths };
}

test('an answer is read, and integers are narrow once the server is known', async () => {
  const datatypes: string[] = [];
  const { client } = await clientOf((request, response, body) => {
    const said = documentOf(request, body);
    datatypes.push(said.inputs.map((each) => each.datatype).join());
    answer(response, said.id, [0, 0, 0, Math.log(3)], [1, 2, 2], OURS);
  });
  const first = await client.ask(asking());
  expect(first.failures).toEqual([]);
  expect(first.probabilities?.get(2)?.map((each) => Number(each.toFixed(6)))).toEqual([0.25, 0.75]);
  expect(first.probabilities?.get(1)).toEqual([0.5, 0.5]);
  await client.ask(asking());
  expect(datatypes).toEqual(['INT64,INT64', 'UINT16,UINT8']);
  expect(client.traffic.requests).toBe(2);
});

test('thresholds are sent, and exits behind the one that is sure may be missing', async () => {
  let sent: unknown;
  const { client } = await clientOf((request, response, body) => {
    const said = documentOf(request, body);
    sent = said.parameters['exit_threshold'];
    answer(response, said.id, [0, 9, NaN, NaN], [1, 2, 2], OURS);
  });
  const found = await client.ask(asking({ layer: 1, leaves: new Map([[1, 0.9]]) }));
  expect(sent).toBe('[0.9,null]');
  expect([...(found.probabilities?.keys() ?? [])]).toEqual([1]);
});

test.each([
  ['another id', [0, 0, 0, 0], [1, 2, 2], OURS, 'text-9'],
  ['another model', [0, 0, 0, 0], [1, 2, 2], { model_fingerprint: `sha256:${'b'.repeat(64)}` }, null],
  ['another number of classes', [0, 0, 0, 0, 0, 0], [1, 2, 3], OURS, null],
  ['other layers', [0, 0, 0, 0], [1, 2, 2], { ...OURS, layers: '[1, 3]' }, null],
  ['no finite numbers', [0, 0, NaN, 0], [1, 2, 2], OURS, null],
] as const)(
  'an answer with %s is not believed, and the tier is left alone at once',
  async (_what, logits, shape, parameters, id) => {
    const { client } = await clientOf((request, response, body) =>
      answer(response, id ?? documentOf(request, body).id, logits, shape, parameters),
    );
    const first = await client.ask(asking());
    expect(first.probabilities).toBeNull();
    expect(first.failures.map((each) => each.fault)).toEqual(['wrong']);
    const second = await client.ask(asking());
    expect(second.failures.map((each) => each.fault)).toEqual(['resting']);
    expect(second.attempts).toBe(0);
  },
);

test.each([
  ['no JSON', '{', {}],
  ['an object', '[1]', {}],
  ['more bytes than it names', '{"outputs": []}', { 'Inference-Header-Content-Length': '99' }],
  ['no tensors', '{"id": "x", "outputs": []}', {}],
] as const)('a body that is not the protocol (%s) is not believed', async (_what, body, headers) => {
  const { client } = await clientOf((_request, response) => {
    response.writeHead(200, headers);
    response.end(body);
  });
  const found = await client.ask(asking());
  expect(found.failures.map((each) => each.fault)).toEqual(['wrong']);
});

test.each([
  [401, 'unauthorised', 1],
  [400, 'refused', 1],
  [500, 'broken', 3],
  [504, 'slow', 1],
  [302, 'unreachable', 3],
] as const)('status %d is %s, after %d attempts', async (status, fault, attempts) => {
  const { client } = await clientOf((_request, response) => {
    response.writeHead(status, { Location: 'http://127.0.0.1:1/' });
    response.end('{"error": "no\\nluck"}');
  });
  const found = await client.ask(asking());
  expect(found.failures.at(-1)?.fault).toBe(fault);
  expect(found.attempts).toBe(attempts);
  if (status === 400) expect(found.failures[0]?.words('edge', 1)).toContain('(HTTP 400: no luck)');
});

test('a server that asks for a pause is asked again after it, and stays trusted', async () => {
  let n = 0;
  const { client } = await clientOf((request, response, body) => {
    n += 1;
    if (n === 1) {
      response.writeHead(429, { 'Retry-After': '0' });
      response.end();
    } else answer(response, documentOf(request, body).id, [0, 0, 0, 0], [1, 2, 2], OURS);
  });
  const found = await client.ask(asking());
  expect(found.failures.map((each) => each.fault)).toEqual(['overloaded']);
  expect(found.attempts).toBe(2);
  expect(found.probabilities).not.toBeNull();
  expect(client.breaker.state).toBe('closed');
});

test('a pause that is longer than the budget is not waited for', async () => {
  const { client, paths } = await clientOf((_request, response) => {
    response.writeHead(429, { 'Retry-After': '30' });
    response.end();
  });
  await client.ask(asking());
  const asked = paths.length;
  const found = await client.ask(asking());
  expect(found.failures.map((each) => each.fault)).toEqual(['overloaded']);
  expect(paths.length).toBe(asked);
});

test('a server that does not answer costs the budget and no more', async () => {
  const { client } = await clientOf(() => undefined);
  const found = await client.ask(asking({ budgetMs: 200 }));
  expect(found.failures.map((each) => each.fault)).toEqual(['slow']);
  expect(found.elapsedMs).toBeGreaterThan(150);
  expect(found.elapsedMs).toBeLessThan(1_500);
});

test('a body without end is not read beyond what is allowed', async () => {
  let written = 0;
  const { client } = await clientOf(
    (_request, response) => {
      const push = (): void => {
        while (written < 50_000_000 && response.write(Buffer.alloc(16_384))) written += 16_384;
      };
      response.on('drain', push);
      push();
    },
    { maxResponseBytes: 4_096 },
  );
  const found = await client.ask(asking());
  expect(found.failures.map((each) => each.fault)).toEqual(['wrong']);
  expect(written).toBeLessThan(50_000_000);
});

test('a tier that keeps failing is left alone, then probed, then trusted again', async () => {
  let well = false;
  const { client, paths } = await clientOf(
    (request, response, body) => {
      if (well) answer(response, documentOf(request, body).id, [0, 0, 0, 0], [1, 2, 2], OURS);
      else response.destroy();
    },
    { attempts: 1, opensAfter: 2, openMs: 60 },
  );
  await client.ask(asking());
  await client.ask(asking());
  expect(client.breaker.state).toBe('open');
  expect((await client.ask(asking())).failures[0]?.fault).toBe('resting');
  well = true;
  await new Promise((resolve) => setTimeout(resolve, 80));
  expect(client.breaker.state).toBe('half-open');
  expect((await client.ask(asking())).probabilities).not.toBeNull();
  expect(paths).toContain('/v2/models/edge/ready');
  expect(client.breaker.state).toBe('closed');
});

test('a token is sent as a bearer, and another one is tried at once', async () => {
  const sent: (string | undefined)[] = [];
  const { client } = await clientOf((request, response) => {
    sent.push(request.headers.authorization);
    response.writeHead(401);
    response.end();
  });
  client.setToken('first-token');
  await client.ask(asking());
  expect(client.breaker.state).toBe('open');
  client.setToken('second-token');
  await client.ask(asking());
  expect(sent).toEqual(['Bearer first-token', 'Bearer second-token']);
});

test('a token never crosses a network in the clear, and no message repeats one', () => {
  const far = new TierClient('edge', 'http://192.0.2.1:8100', FINGERPRINT, 2, DEFAULTS, fetch);
  expect(() => far.setToken('secret-token')).toThrow(OptionError);
  expect(() => checkedToken('secret token')).toThrow(/^(?!.*secret)/);
  expect(checkedToken(' \n')).toBeNull();
});

test.each(['ftp://edge', 'edge', 'http://user:password@edge', 'http://edge/?a=b'])('%s is no URL of a tier', (url) => {
  expect(() => checkedUrl(url, 'edge')).toThrow(OptionError);
});
