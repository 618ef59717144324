/** Pictures of the page, to be looked at: SHOTS=FOLDER npx playwright test look */
import { join } from 'node:path';
import { chooseFile, classify, expect, start, test } from './fixtures.js';
import { bundle } from './tiers.js';
import { texts } from './texts.js';

const SHOTS = process.env['SHOTS'];
const SIZES = [
  [360, 780],
  [1280, 860],
] as const;

test('pictures at phone and desk width, in both themes: online, offline, edge down', async ({ browser, stage }) => {
  test.skip(!SHOTS, 'SHOTS names no folder');
  test.setTimeout(900_000);
  const own = bundle();
  const { site, cloud } = await stage.openWithTiers({
    bundle: own,
    examples: [
      'a gripping film',
      'two hours too long',
      'not the worst thing i have seen this year, though that says little',
    ],
  });
  const file = texts(300);
  for (const state of ['online', 'offline', 'edge down'] as const) {
    if (state === 'edge down') await cloud.kill();
    for (const [width, height] of SIZES)
      for (const colorScheme of ['light', 'dark'] as const) {
        const context = await browser.newContext({ viewport: { width, height }, colorScheme });
        const page = await context.newPage();
        await start(page, site.url);
        if (state === 'online') await page.screenshot({ path: join(SHOTS!, `${width}-${colorScheme}-empty.png`) });
        await context.setOffline(state === 'offline');
        await chooseFile(page, file);
        if (state === 'online') await page.screenshot({ path: join(SHOTS!, `${width}-${colorScheme}-file.png`) });
        await page.getByRole('button', { name: 'Classify 300 texts' }).click();
        await expect(page.getByText('300 texts classified').first()).toBeVisible({ timeout: 200_000 });
        await classify(page, 'two hours too long');
        await page.screenshot({ path: join(SHOTS!, `${width}-${colorScheme}-${state}.png`) });
        await page.locator('.list').evaluate((list) => {
          const cards = [...list.children].filter((each) => each.querySelector('.note, .edge.answers, .cloud.answers'));
          list.replaceChildren(...cards.slice(0, 3));
        });
        await page.screenshot({ path: join(SHOTS!, `${width}-${colorScheme}-${state}-hard.png`), fullPage: true });
        await context.close();
      }
  }
});
