/** Pictures of the page, to be looked at: SHOTS=FOLDER npx playwright test look */
import { test } from '@playwright/test';
import { Site } from './site.js';
import { bundle } from './tiers.js';

const SHOTS = process.env['SHOTS'];

test.skip(!SHOTS, 'SHOTS names no folder');

for (const [width, height] of [
  [360, 780],
  [1280, 860],
] as const)
  for (const colorScheme of ['light', 'dark'] as const)
    test(`${width} ${colorScheme}`, async ({ browser }) => {
      const site = await Site.open({
        bundle: bundle(),
        edge: 'http://127.0.0.1:9',
        examples: [
          'a gripping film',
          'two hours too long',
          'not the worst thing i have seen this year, though that says little',
        ],
      });
      const context = await browser.newContext({ viewport: { width, height }, colorScheme });
      const page = await context.newPage();
      page.on('console', (message) => console.log(message.type(), message.text()));
      page.on('pageerror', (error) => console.log(error));
      const shot = (name: string): Promise<Buffer> =>
        page.screenshot({ path: `${SHOTS}/${width}-${colorScheme}-${name}.png`, fullPage: true });
      await page.goto(site.url);
      await page.getByLabel('Text', { exact: true }).waitFor();
      await shot('empty');
      for (const text of [
        'a gripping film',
        'not the worst thing i have seen this year, though that says little',
        'the cast tries, the script does not',
      ]) {
        await page.getByLabel('Text', { exact: true }).fill(text);
        await page.getByRole('button', { name: 'Classify' }).click();
        await page.locator('.answer', { hasText: text }).waitFor();
      }
      await shot('answers');
      await context.close();
      await site.close();
    });
