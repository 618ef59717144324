import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import AxeBuilder from '@axe-core/playwright';
import { type Page, chromium } from '@playwright/test';
import { chooseFile, classify, expect, start, test, textBox } from './fixtures.js';
import { Site } from './site.js';
import { ROOT, bundle } from './tiers.js';

const CASCADE = bundle();
const CONFORMANCE = process.env['DIMEC_CONFORMANCE'] ?? join(ROOT, 'build/conformance');
const EXAMPLES = ['a gripping film', 'two hours too long'];

/** Expect that nothing is wrong by the rules of axe-core, WCAG 2.2 AA among them. */
async function expectAccessible(page: Page, what: string): Promise<void> {
  const { violations } = await new AxeBuilder({ page }).analyze();
  expect(
    violations.map(({ id, nodes }) => `${id}: ${nodes.map((each) => each.html).join(' ')}`),
    what,
  ).toEqual([]);
}

for (const width of [360, 1280])
  for (const colorScheme of ['light', 'dark'] as const)
    test(`nothing is out of reach at ${width} in ${colorScheme}`, async ({ page, stage }) => {
      await page.setViewportSize({ width, height: 800 });
      await page.emulateMedia({ colorScheme });
      const site = await stage.open({ bundle: CASCADE, edge: 'http://127.0.0.1:9', examples: EXAMPLES });
      await start(page, site.url);
      await expectAccessible(page, 'empty');
      await classify(page, 'a gripping film');
      await classify(page, 'did n’t smile, though it tried, and then again not in the way that it might have');
      await page.getByText('About this model').click();
      await expectAccessible(page, 'answers');
      await chooseFile(page, ['id,text', '1,good', '2,bad'], 'films.csv');
      await expect(page.getByRole('button', { name: 'Classify 2 texts' })).toBeFocused();
      await expectAccessible(page, 'file');
      await page.getByRole('button', { name: 'Classify 2 texts' }).click();
      await expect(page.getByText('2 texts classified').first()).toBeVisible();
      await page.context().setOffline(true);
      await expectAccessible(page, 'finished, offline');
      await page.context().setOffline(false);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      expect(wide).toBeLessThanOrEqual(width);
      await site.tamper('bundle/policy.json');
      await page.evaluate(() => caches.delete('dimec-bundle'));
      await page.reload();
      await expect(page.getByRole('alert')).toBeVisible();
      await expectAccessible(page, 'fault');
    });

test('everything is done by keyboard, and told to a screen reader', async ({ page, stage }) => {
  const site = await stage.open({ bundle: CASCADE, edge: 'http://127.0.0.1:9', examples: EXAMPLES });
  await start(page, site.url);
  await page.keyboard.press('Tab');
  await expect(textBox(page)).toBeFocused();
  await page.keyboard.type('a gripping film');
  await page.keyboard.press('Tab');
  await expect(page.getByRole('button', { name: 'Classify' })).toBeFocused();
  await page.keyboard.press('Enter');
  await expect(page.getByRole('status').filter({ hasText: 'answered' })).toHaveText(
    /^positive, [<>\d ]+ %, answered on this device in /,
  );
  await expect(page.getByRole('list', { name: 'The way it took' }).first().getByRole('listitem')).not.toHaveCount(0);
  const reached = new Set<string>();
  for (let n = 0; n < 20; n += 1) {
    await page.keyboard.press('Tab');
    reached.add(
      await page.evaluate(
        () => document.activeElement?.textContent || (document.activeElement as HTMLInputElement).type,
      ),
    );
  }
  for (const name of ['Open a file', EXAMPLES[0]!, 'Download answers (CSV)', 'Clear', 'password', 'About this model'])
    expect(
      [...reached].some((each) => each.includes(name)),
      name,
    ).toBe(true);
});

test('the dial goes to another operating point of the same model', async ({ page, stage }) => {
  const suite = join(CONFORMANCE, 'texts');
  test.skip(!existsSync(suite), `${suite} is missing: write it by python -m tests.conformance`);
  const site = await stage.open({
    bundle: join(suite, 'cascade-from-exit-zero'),
    points: { 'from layer 1': join(suite, 'cascade-from-mobile') },
  });
  await start(page, site.url);
  const first = await classify(page, 'a film');
  await expect(first.locator('.station').first()).not.toHaveClass(/unused/);
  const dial = page.getByRole('slider', { name: 'Operating point' });
  await expect(dial).toHaveAttribute('aria-valuetext', 'as exported');
  await dial.focus();
  await page.keyboard.press('ArrowRight');
  await expect(dial).toHaveAttribute('aria-valuetext', 'from layer 1');
  await expectAccessible(page, 'dial');
  const second = await classify(page, 'another film');
  await expect(second.locator('.station').first()).toHaveClass(/unused/);
});

test('pairs of texts have two boxes', async ({ page, stage }) => {
  const suite = join(CONFORMANCE, 'pairs');
  test.skip(!existsSync(suite), `${suite} is missing: write it by python -m tests.conformance`);
  const site = await stage.open({ bundle: join(suite, 'cascade-from-exit-zero') });
  await start(page, site.url);
  await page.getByLabel('First text').fill('why is the sky blue?');
  await expect(page.getByRole('button', { name: 'Classify' })).toBeDisabled();
  await page.getByLabel('Second text').fill('what makes the sky blue?');
  await page.getByLabel('Second text').press('Control+Enter');
  await expect(page.locator('.answer .quote')).toHaveText('why is the sky blue? · what makes the sky blue?');
  await expectAccessible(page, 'pairs');
});

test('where storage is denied the page works all the same', async () => {
  // A person's own setting: no site may keep data.
  const profile = await mkdtemp('/tmp/dimec-profile-');
  await mkdir(join(profile, 'Default'));
  const preferences = { profile: { default_content_setting_values: { cookies: 2 } } };
  await writeFile(join(profile, 'Default/Preferences'), JSON.stringify(preferences));
  const site = await Site.open({ bundle: bundle('dimee-adaptive') });
  const { executablePath, args } = test.info().project.use.launchOptions ?? {};
  const context = await chromium.launchPersistentContext(profile, {
    ...(executablePath && { executablePath }),
    ...(args && { args }),
  });
  const page = await context.newPage();
  await start(page, site.url);
  const denied = await page.evaluate(() =>
    caches.keys().then(
      () => false,
      () => true,
    ),
  );
  expect(denied).toBe(true);
  await classify(page, 'a gripping film');
  await page.getByText('About this model').click();
  await expect(page.getByText('not kept: this browser denies storage')).toBeVisible();
  await expect(page.getByText('not kept, since this browser denies storage')).toBeVisible();
  await context.close();
  await site.close();
});
