/** The library in three engines: what exits say, and answers over real tiers; and the page without a network. */
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { cp } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Answer } from '../src/device/sample.js';
import type { Text } from '../src/device/tokens.js';
import { type Browser, type EngineName, missing, openBrowser } from './engines.js';
import { expectedOf } from './expected.js';
import { expect, test } from './fixtures.js';
import type { Said } from './harness/main.js';
import type { Site } from './site.js';
import { ROOT, bundle } from './tiers.js';
import { texts } from './texts.js';

const HARNESS = fileURLToPath(new URL('../dist-harness', import.meta.url));
const CONFORMANCE = process.env['DIMEC_CONFORMANCE'] ?? join(ROOT, 'build/conformance');

interface Suite {
  name: string;
  runs: { bundle: string }[];
  readings: {
    texts: Text[];
    tokens: { input_ids: number[]; token_type_ids: number[]; whole: number[] }[];
    unseen: number[];
    embeddings: number[][];
    logits: { mobile: Record<string, number[][]> };
  };
}

async function withHarness(site: Site): Promise<string> {
  await cp(HARNESS, join(site.folder, 'harness'), { recursive: true });
  return `${site.url}harness/index.html`;
}

for (const engine of ['chromium', 'firefox', 'webkit'] as const satisfies EngineName[])
  test.describe(engine, () => {
    let browser: Browser;
    test.skip(missing(engine) !== null, missing(engine) ?? '');
    test.setTimeout(900_000);
    test.beforeAll(async () => {
      browser = await openBrowser(engine);
      console.log(`${engine} ${browser.version}`);
    });
    test.afterAll(() => browser.close());

    test('ids, embeddings and logits are those of the conformance file', async ({ stage }) => {
      const file = join(CONFORMANCE, 'conformance.json');
      test.skip(!existsSync(file), `${file} is missing: write it by python -m tests.conformance`);
      const { suites } = JSON.parse(readFileSync(file, 'utf-8')) as { suites: Suite[] };
      const site = await stage.open({ bundle: bundle() });
      const url = await withHarness(site);
      for (const { name, runs, readings } of suites) {
        const folder = runs[0]?.bundle ?? `${name}/${readdirSync(join(CONFORMANCE, name))[0]}`;
        await cp(join(CONFORMANCE, folder, 'mobile'), join(site.folder, 'harness', name), { recursive: true });
        await browser.goto(url);
        const said = await browser.run<Said[]>(
          'for (let n = 0; !window.harness && n < 100; n += 1) await new Promise((on) => setTimeout(on, 100)); return window.harness.readings({ bundle: given.name }, given.texts);',
          { name, texts: readings.texts },
        );
        let off = 0;
        said.forEach((each, place) => {
          const tokens = readings.tokens[place]!;
          expect([each.ids, each.whole, each.types], `${name}, text ${place}`).toEqual([
            tokens.input_ids,
            tokens.whole,
            tokens.token_type_ids,
          ]);
          expect(each.unseen).toBeCloseTo(readings.unseen[place]!, 6);
          off = Math.max(off, distance(each.embedding, readings.embeddings[place]!));
          for (const [layer, logits] of Object.entries(each.logits))
            off = Math.max(off, distance(logits, readings.logits.mobile[layer]![place]!));
        });
        expect(off, name).toBeLessThan(name === 'int8' ? 0.05 : 1e-4);
      }
    });

    test('texts are answered as by Python, over real tiers', async ({ stage }) => {
      const own = bundle();
      const { site, edge, cloud } = await stage.openWithTiers({ bundle: own });
      await browser.goto(await withHarness(site));
      const some = texts(1_000);
      const found = await browser.run<Answer[]>(
        'for (let n = 0; !window.harness && n < 100; n += 1) await new Promise((on) => setTimeout(on, 100)); await window.harness.open(given.places); return window.harness.classify(given.texts);',
        { places: { bundle: '../bundle/', edge: edge.url, cloud: cloud.url }, texts: some },
      );
      const expected = expectedOf(own, edge.url, cloud.url, some);
      const differ = expected.filter((each, place) => {
        const one = found[place]!;
        return (
          each.label !== one.label ||
          each.tier !== one.tier ||
          each.layer !== one.layer ||
          Math.abs(each.cost - one.cost) > 1e-9 ||
          one.degraded !== null
        );
      });
      console.log(`${engine}: ${differ.length} of ${some.length} differ`);
      // Eight-bit graphs round otherwise in another engine: a confidence at a border may cross it.
      expect(differ.length, JSON.stringify(differ.slice(0, 3))).toBeLessThanOrEqual(some.length / 200);
    });

    test('the page answers, and starts again without a server', async ({ stage }) => {
      const site = await stage.open({ bundle: bundle() });
      await browser.goto(site.url);
      await classified(browser, 'a gripping film');
      await expect
        .poll(() => browser.run<boolean>("return document.body.textContent.includes('Works offline')"), {
          timeout: 60_000,
        })
        .toBe(true);
      await site.stop();
      await browser.goto(site.url);
      await classified(browser, 'two hours too long');
    });
  });

async function classified(browser: Browser, text: string): Promise<void> {
  await expect
    .poll(() => browser.run<boolean>("return document.querySelector('textarea') !== null"), { timeout: 60_000 })
    .toBe(true);
  await browser.type('textarea', text);
  await browser.run("document.querySelector('form button[type=submit]').click()");
  await expect
    .poll(() => browser.run<string>("return document.querySelector('.answer .quote')?.textContent ?? ''"))
    .toBe(text);
}

function distance(a: readonly number[], b: readonly number[]): number {
  expect(a.length).toBe(b.length);
  return Math.max(...a.map((each, place) => Math.abs(each - b[place]!)));
}
