import { existsSync } from 'node:fs';
import { defineConfig } from '@playwright/test';

const chromium = process.env['CHROMIUM'] ?? '/usr/bin/chromium';

export default defineConfig({
  testDir: 'e2e',
  testMatch: '*.spec.ts',
  // Times and tiers are shared, so that tests run one after the other.
  workers: 1,
  timeout: 120_000,
  // WebKitGTK sometimes fails to open a graph (out of bounds in its own WebAssembly); a second try that passes is told.
  retries: 1,
  forbidOnly: true,
  reporter: 'list',
  use: {
    browserName: 'chromium',
    launchOptions: { ...(existsSync(chromium) ? { executablePath: chromium } : {}), args: ['--no-sandbox'] },
  },
});
