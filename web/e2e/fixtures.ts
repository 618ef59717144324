/** What tests of the page share: a site, its tiers, and eyes on everything that the page asks for or complains about. */
import { type Page, test as base, expect } from '@playwright/test';
import { Site, type SiteOptions } from './site.js';
import { ServedTier, type TierOptions } from './tiers.js';

interface Stage {
  open: (options: SiteOptions) => Promise<Site>;
  serve: (tier: 'edge' | 'cloud', bundle: string, options?: TierOptions) => Promise<ServedTier>;
  /** A site, and the edge and the cloud of its bundle, which it asks. */
  openWithTiers: (
    options: SiteOptions,
    ofTiers?: TierOptions,
  ) => Promise<{ site: Site; origin: string; edge: ServedTier; cloud: ServedTier }>;
  /** Origins that the context asked, its workers and service worker included. */
  asked: Set<string>;
  /** What the console said, but for servers that do not answer as wished. */
  complaints: string[];
}

/** What a browser says of requests that a test lets fail. */
const EXPECTED = /Failed to load resource|net::ERR_|blocked by CORS policy|could not be kept/;

export const test = base.extend<{ stage: Stage }>({
  stage: async ({ context }, use) => {
    const closing: (() => Promise<void>)[] = [];
    const asked = new Set<string>();
    const complaints: string[] = [];
    context.on('request', (request) => asked.add(new URL(request.url()).origin));
    context.on('console', (message) => {
      if (['error', 'warning'].includes(message.type()) && !EXPECTED.test(message.text()))
        complaints.push(message.text());
    });
    context.on('weberror', (error) => complaints.push(String(error.error())));
    const open: Stage['open'] = async (options) => {
      const site = await Site.open(options);
      closing.push(() => site.close());
      return site;
    };
    const serve: Stage['serve'] = async (...given) => {
      const tier = await ServedTier.open(...given);
      closing.push(() => tier.kill());
      return tier;
    };
    const openWithTiers: Stage['openWithTiers'] = async (options, ofTiers = {}) => {
      // The origin is not known before the site is there, and the site has to name the tiers.
      const site = await open(options);
      const { origin } = new URL(site.url);
      const edge = await serve('edge', options.bundle, { origin, ...ofTiers });
      const cloud = await serve('cloud', options.bundle, { origin, ...ofTiers });
      await site.say({ edge: edge.url, cloud: cloud.url });
      return { site, origin, edge, cloud };
    };
    await use({ asked, complaints, open, serve, openWithTiers });
    for (const close of closing.reverse()) await close();
    expect(complaints, 'complaints in the console').toEqual([]);
  },
});

export { expect };

export const textBox = (page: Page) => page.getByLabel('Text', { exact: true });

/** Open the page and wait for its device. */
export async function start(page: Page, url: string): Promise<void> {
  await page.goto(url);
  await expect(textBox(page).or(page.getByLabel('First text'))).toBeVisible({ timeout: 60_000 });
}

/** Classify one text by the box; return its card. */
export async function classify(page: Page, text: string) {
  await textBox(page).fill(text);
  await textBox(page).press('Control+Enter');
  const card = page.locator('.answer').first();
  await expect(card.locator('.quote')).toHaveText(text, { timeout: 20_000 });
  return card;
}

export interface Row {
  index: number;
  text: string;
  label: string;
  confidence: number;
  tier: string;
  layer: number;
  cost: number;
  degraded: string;
}

/** Put texts into a file, and choose it. */
export async function chooseFile(page: Page, texts: readonly string[], name = 'texts.txt'): Promise<void> {
  await page
    .locator('input[type=file]')
    .setInputFiles({ name, mimeType: 'text/plain', buffer: Buffer.from(texts.join('\n')) });
}

/** Download the answers and read them. */
export async function answersOf(page: Page): Promise<Row[]> {
  const download = page.waitForEvent('download');
  await page.getByRole('button', { name: 'Download answers' }).click();
  const stream = await (await download).createReadStream();
  const parts: Buffer[] = [];
  for await (const part of stream) parts.push(part as Buffer);
  const { default: Papa } = await import('papaparse');
  const { data } = Papa.parse<Record<string, string>>(Buffer.concat(parts).toString(), {
    header: true,
    skipEmptyLines: true,
  });
  return data.map((row) => ({
    index: Number(row['index']),
    text: row['text'] ?? '',
    label: row['label'] ?? '',
    confidence: Number(row['confidence']),
    tier: row['tier'] ?? '',
    layer: Number(row['layer']),
    cost: Number(row['cost']),
    degraded: row['degraded'] ?? '',
  }));
}
