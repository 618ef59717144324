import { execFileSync } from 'node:child_process';
import { expectedOf } from './expected.js';
import { answersOf, chooseFile, classify, expect, start, test, textBox } from './fixtures.js';
import { DIST } from './site.js';
import { DATA, DIMEC, PYTHON, bundle } from './tiers.js';
import { texts } from './texts.js';

const CASCADE = bundle();

/** Eight-bit graphs round otherwise in another engine, so that a text whose confidence lies at a border may cross it. */
const MOST_DIFFERENT = { int8: 5, float32: 0 };

for (const weights of ['int8', 'float32'] as const)
  test(`1,000 texts of SST-2 are answered as by Python, ${weights}: ids in requests, labels, tiers, layers, costs`, async ({
    page,
    stage,
  }) => {
    test.skip(!DATA, 'DIMEC_DATA names no folder with SST-2');
    test.setTimeout(900_000);
    const CASCADE = bundle('dimec-cascade', { quantized: weights === 'int8' });
    const own = texts(1_000);
    const { site, origin, edge, cloud } = await stage.openWithTiers({ bundle: CASCADE });
    const asked: string[] = [];
    page.context().on('request', (request) => {
      if (request.method() === 'POST') asked.push(idsOf(request.postDataBuffer()!));
    });
    await start(page, site.url);
    await chooseFile(
      page,
      own.map((text) => text.replaceAll('\n', ' ')),
    );
    await page.getByRole('button', { name: 'Classify 1,000 texts' }).click();
    await expect(page.getByText('1,000 texts classified', { exact: true }).first()).toBeVisible({ timeout: 500_000 });
    const found = await answersOf(page);
    const expected = expectedOf(CASCADE, edge.url, cloud.url, own);
    const differ = expected.flatMap((each, place) => {
      const row = found[place]!;
      const same =
        each.label === row.label &&
        each.tier === row.tier &&
        each.layer === row.layer &&
        Math.abs(each.cost - row.cost) < 1e-9;
      return same && row.degraded === '' ? [] : [{ text: own[place], python: each, browser: row }];
    });
    const off = Math.max(
      ...expected.map((each, place) =>
        each.layer === found[place]!.layer ? Math.abs(Math.max(...each.probabilities) - found[place]!.confidence) : 0,
      ),
    );
    const exits = new Map<string, number>();
    for (const { tier, layer } of found) exits.set(`${tier} ${layer}`, (exits.get(`${tier} ${layer}`) ?? 0) + 1);
    console.log(
      `${weights}: ${differ.length} differ, confidence off by at most ${off}; ${[...exits].map((each) => each.join(': ')).join(', ')}`,
    );
    expect(found.map((row) => row.text)).toEqual(own);
    expect(differ.length, JSON.stringify(differ)).toBeLessThanOrEqual(MOST_DIFFERENT[weights]);
    expect(off).toBeLessThan(weights === 'int8' ? 0.05 : 1e-4);
    const known = new Set(expected.map((each) => each.ids.join()));
    expect(asked.length).toBeGreaterThan(50);
    expect(asked.filter((ids) => !known.has(ids))).toEqual([]);
    expect([...stage.asked].sort()).toEqual([origin, new URL(edge.url).origin, new URL(cloud.url).origin].sort());
  });

/** Return the token ids of a request in the binary extension. */
function idsOf(body: Buffer): string {
  let depth = 0;
  let length = 0;
  for (; length < body.length; length += 1) {
    const byte = body[length];
    if (byte === 0x7b) depth += 1;
    if (byte === 0x7d && (depth -= 1) === 0) break;
  }
  const head = JSON.parse(body.subarray(0, length + 1).toString()) as {
    inputs: { name: string; datatype: string; shape: number[] }[];
  };
  let at = length + 1;
  for (const { name, datatype, shape } of head.inputs) {
    const width = { UINT8: 1, UINT16: 2, UINT32: 4, INT64: 8 }[datatype]!;
    if (name === 'input_ids')
      return Array.from({ length: shape[1]! }, (_, place) =>
        width === 8 ? Number(body.readBigInt64LE(at + 8 * place)) : body.readUIntLE(at + width * place, width),
      ).join();
    at += width * shape[1]!;
  }
  return '';
}

for (const isolated of [true, false])
  test(`the page works ${isolated ? 'with' : 'without'} isolation headers`, async ({ page, stage }) => {
    const site = await stage.open({ bundle: CASCADE, isolated });
    await start(page, site.url);
    expect(await page.evaluate(() => crossOriginIsolated)).toBe(isolated);
    const card = await classify(page, 'a gripping film');
    await expect(card.locator('.label')).toHaveText('positive');
  });

test('a reload without any server starts, and texts are answered on the device', async ({ page, stage }) => {
  const hard = texts(200);
  const { site, edge, cloud } = await stage.openWithTiers({ bundle: CASCADE });
  await start(page, site.url);
  await expect(page.getByText('Works offline')).toBeVisible({ timeout: 30_000 });
  await site.stop();
  await edge.kill();
  await cloud.kill();
  await page.reload();
  await expect(textBox(page)).toBeVisible({ timeout: 30_000 });
  await page.context().setOffline(true);
  await expect(page.getByText('Offline', { exact: true })).toBeVisible();
  await chooseFile(page, hard);
  await page.getByRole('button', { name: 'Classify 200 texts' }).click();
  await expect(page.getByText('200 texts classified', { exact: true }).first()).toBeVisible({ timeout: 100_000 });
  const rows = await answersOf(page);
  expect(new Set(rows.map((row) => row.tier))).toEqual(new Set(['mobile']));
  const degraded = rows.filter((row) => row.degraded !== '');
  expect(degraded.length).toBeGreaterThan(0);
  expect(degraded.every((row) => /this device is offline|left alone|no edge|no cloud/.test(row.degraded))).toBe(true);
  await page.context().setOffline(false);
  await expect(page.getByText('Online', { exact: true })).toBeVisible();
});

test('tiers that are killed on the way cost no answer, and come back', async ({ page, stage }) => {
  const own = texts(400);
  const { site, origin, edge, cloud } = await stage.openWithTiers({ bundle: CASCADE });
  await start(page, site.url);
  await chooseFile(page, own);
  await page.getByRole('button', { name: 'Classify 400 texts' }).click();
  await expect.poll(() => progressOf(page), { timeout: 60_000, intervals: [20] }).toBeGreaterThan(40);
  await edge.kill();
  await cloud.kill();
  await expect(page.getByText('400 texts classified', { exact: true }).first()).toBeVisible({ timeout: 100_000 });
  const rows = await answersOf(page);
  expect(rows.map((row) => row.text)).toEqual(own);
  expect(rows.map((row) => row.index)).toEqual(own.map((_, place) => place));
  const lost = rows.filter((row) => row.degraded !== '');
  expect(lost.length).toBeGreaterThan(0);
  expect(lost.every((row) => row.tier === 'mobile')).toBe(true);
  await stage.serve('edge', CASCADE, { origin, port: edge.port });
  await stage.serve('cloud', CASCADE, { origin, port: cloud.port });
  const [hard] = lost;
  await expect(async () => {
    const card = await classify(page, hard!.text);
    await expect(card.locator('.badge')).toHaveText(/by the (edge|cloud)/, { timeout: 1_000 });
  }).toPass({ timeout: 60_000, intervals: [2_000] });
});

async function progressOf(page: import('@playwright/test').Page): Promise<number> {
  return page
    .locator('.file progress')
    .evaluate((element) => (element as HTMLProgressElement).value)
    .catch(() => 0);
}

/** Return a text that the policy sends to a server. */
function hardText(): string {
  const own = texts(300);
  const script = `
import json, sys
from dimec.bundle import load_bundle
from dimec.runtime.device.device import Device
with Device(sys.argv[1]) as device:
    for text, answer in zip(texts := json.load(sys.stdin), device.stream(iter(texts), in_flight=1)):
        if answer.tier != "mobile":
            print(text)
            break
`;
  return execFileSync(PYTHON, ['-c', script, CASCADE], { input: JSON.stringify(own) })
    .toString()
    .trim();
}

test('a wrong token is said, the right one helps, and none is kept', async ({ page, stage }) => {
  const hard = hardText();
  const token = 'a-token-of-many-letters';
  const { site } = await stage.openWithTiers({ bundle: CASCADE }, { token });
  await start(page, site.url);
  const first = await classify(page, hard);
  await expect(first.locator('.note')).toContainText('refused the token');
  await expect(page.getByRole('alert')).toContainText('wants a token');
  await page.getByLabel('Token').fill('another-token-of-letters');
  await page.getByRole('button', { name: 'Use token' }).click();
  await expect(page.getByLabel('Token')).toHaveValue('');
  const second = await classify(page, `${hard} `);
  await expect(second.locator('.note')).toContainText('refused the token');
  await page.getByLabel('Token').fill(token);
  await page.getByLabel('Token').press('Enter');
  await page.getByRole('button', { name: 'Clear' }).click();
  const third = await classify(page, hard);
  await expect(third.locator('.badge')).toHaveText(/by the (edge|cloud)/);
  await expect(third.locator('.note')).toHaveCount(0);
  const kept = await page.evaluate(async () => {
    const found = [
      JSON.stringify(localStorage),
      JSON.stringify(sessionStorage),
      document.cookie,
      document.documentElement.outerHTML,
    ];
    for (const name of await caches.keys())
      for (const request of await (await caches.open(name)).keys())
        found.push(request.url, JSON.stringify([...request.headers]));
    for (const { name } of await indexedDB.databases()) found.push(name ?? '');
    return found.join('\n');
  });
  expect(kept).not.toContain(token);
  await page.reload();
  const fourth = await classify(page, hard);
  await expect(fourth.locator('.note')).toContainText('refused the token');
});

test('a server that does not allow the site costs no answer, and how to allow it is said', async ({ page, stage }) => {
  const hard = hardText();
  const { site } = await stage.openWithTiers({ bundle: CASCADE }, { origin: null });
  await start(page, site.url);
  const card = await classify(page, hard);
  await expect(card.locator('.note')).toContainText('this site is not allowed');
  await expect(card.locator('.badge')).toHaveText('on this device');
});

test('a graph of which one byte differs is refused, in a sentence that names it', async ({ page, stage }) => {
  const site = await stage.open({ bundle: CASCADE });
  await site.tamper('bundle/segment-1.onnx');
  await page.goto(site.url);
  await expect(page.getByRole('alert')).toContainText('segment-1.onnx is not the file that the manifest names');
  await expect(textBox(page)).toHaveCount(0);
});

test('a policy that a browser does not know is refused in one sentence', async ({ page, stage }) => {
  const site = await stage.open({ bundle: CASCADE });
  await site.edit('bundle/manifest.json', (text) => text.replace('"policy": "dimec-cascade"', '"policy": "splitee"'));
  await page.goto(site.url);
  await expect(page.getByRole('alert')).toContainText("the bundle's policy is splitee, which a browser cannot run");
});

test('where storage is full the page works, and says that it keeps no files', async ({ page, stage }) => {
  const site = await stage.open({ bundle: CASCADE });
  const session = await page.context().newCDPSession(page);
  await session.send('Storage.overrideQuotaForOrigin', { origin: new URL(site.url).origin, quotaSize: 1_000 });
  await start(page, site.url);
  const card = await classify(page, 'a gripping film');
  await expect(card.locator('.label')).toHaveText('positive');
  await page.getByText('About this model').click();
  await expect(page.getByText('not kept, since this browser denies storage')).toBeVisible();
  await expect(page.getByText('Works offline')).toHaveCount(0);
});

test('what is learnt is kept over a reload, by one of two tabs', async ({ page, context, stage }) => {
  const own = ['a gripping film', 'a dull film', 'moving and funny'];
  const { site } = await stage.openWithTiers({ bundle: bundle('dimee-adaptive') });
  await start(page, site.url);
  await page.getByText('About this model').click();
  await expect(page.getByText('kept in this browser', { exact: true })).toBeVisible();
  for (const text of own) await classify(page, text);
  // A snapshot is written after five seconds at the latest.
  await expect.poll(() => updatesKept(page), { timeout: 15_000 }).toBe(3);
  const second = await context.newPage();
  await start(second, site.url);
  await second.getByText('About this model').click();
  await expect(second.getByText('another tab keeps it')).toBeVisible();
  for (const text of own) await classify(second, text);
  await second.waitForTimeout(6_000);
  await second.close();
  expect(await updatesKept(page)).toBe(3);
  await page.reload();
  for (const text of own) await classify(page, text);
  await expect.poll(() => updatesKept(page), { timeout: 15_000 }).toBe(6);
});

async function updatesKept(page: import('@playwright/test').Page): Promise<number> {
  return page.evaluate(
    () =>
      new Promise<number>((resolve) => {
        const request = indexedDB.open('dimec');
        request.onsuccess = () => {
          const all = request.result.transaction('states').objectStore('states').getAll();
          all.onsuccess = () => {
            resolve((all.result as { updates: number }[])[0]?.updates ?? 0);
            request.result.close();
          };
        };
      }),
  );
}

test('a file of columns is read by the one that is chosen, and a run can be stopped', async ({ page, stage }) => {
  const site = await stage.open({ bundle: CASCADE });
  await start(page, site.url);
  const rows = Array.from({ length: 3_000 }, (_, place) => `${place},"film ${place}, good",other`);
  await chooseFile(page, ['id,title,note', ...rows], 'films.csv');
  await page.getByLabel('The first line names the columns').check();
  await page.getByLabel('Column of the texts').selectOption('title');
  await expect(page.locator('.preview')).toHaveText('film 0, good');
  await page.getByRole('button', { name: 'Classify 3,000 texts' }).click();
  await expect.poll(() => progressOf(page)).toBeGreaterThan(10);
  await page.getByRole('button', { name: 'Stop' }).click();
  await expect(page.getByText(/Stopped after [\d,]+ of 3,000 texts/).first()).toBeVisible();
  const found = await answersOf(page);
  expect(found.length).toBeGreaterThan(10);
  expect(found.length).toBeLessThan(3_000);
  expect(found.map((row) => row.text)).toEqual(found.map((_, place) => `film ${place}, good`));
});

test('a file that cannot be read is said to be so', async ({ page, stage }) => {
  const site = await stage.open({ bundle: CASCADE });
  await start(page, site.url);
  await chooseFile(page, [' '], 'none.txt');
  await expect(page.getByRole('alert')).toHaveText('none.txt holds no text.');
});

test('dimec serve edge serves the site itself, over one origin', async ({ page, stage }) => {
  const { mkdtemp } = await import('node:fs/promises');
  const folder = `${await mkdtemp('/tmp/dimec-made-')}/site`;
  execFileSync(DIMEC, ['web', CASCADE, '--out', folder, '--page', DIST]);
  const edge = await stage.serve('edge', CASCADE, { site: folder });
  await start(page, edge.url);
  expect(await page.evaluate(() => crossOriginIsolated)).toBe(true);
  await classify(page, 'a gripping film');
  await expect(page.getByText('Works offline')).toBeVisible({ timeout: 30_000 });
  expect([...stage.asked]).toEqual([new URL(edge.url).origin]);
});
