/** Browsers of other makers, each driven by the protocol that it has. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync } from 'node:fs';
import { createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { chromium } from '@playwright/test';
import puppeteer from 'puppeteer-core';

export type EngineName = 'chromium' | 'firefox' | 'webkit';

export interface Browser {
  readonly version: string;
  goto(url: string): Promise<void>;
  /** Run the body of an asynchronous function with one argument in the page. */
  run<T>(body: string, given?: unknown): Promise<T>;
  /** Type into the one element that fits. */
  type(selector: string, text: string): Promise<void>;
  close(): Promise<void>;
}

const CHROMIUM = process.env['CHROMIUM'] ?? '/usr/bin/chromium';
const FIREFOX = process.env['FIREFOX'] ?? '/usr/bin/firefox-esr';
const WEBKIT = process.env['WEBKIT_DRIVER'] ?? '/usr/bin/WebKitWebDriver';

/** Return what is missing for an engine, null where nothing is. */
export function missing(engine: EngineName): string | null {
  const path = { chromium: CHROMIUM, firefox: FIREFOX, webkit: WEBKIT }[engine];
  if (existsSync(path)) return null;
  // Nothing is skipped where all has to hold.
  if (process.env['DIMEC_STRICT'] === '1') throw new Error(`${path} is missing`);
  return `${path} is missing`;
}

export function openBrowser(engine: EngineName): Promise<Browser> {
  return { chromium: openChromium, firefox: openFirefox, webkit: openWebKit }[engine]();
}

async function openChromium(): Promise<Browser> {
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox'] });
  const page = await browser.newPage();
  return {
    version: browser.version(),
    goto: async (url) => {
      await page.goto(url);
    },
    run: (body, given) => page.evaluate(`(async (given) => {${body}})(${JSON.stringify(given ?? null)})`),
    type: (selector, text) => page.locator(selector).pressSequentially(text),
    close: () => browser.close(),
  };
}

async function openFirefox(): Promise<Browser> {
  const browser = await puppeteer.launch({
    browser: 'firefox',
    executablePath: FIREFOX,
    headless: true,
    protocolTimeout: 900_000,
  });
  let page = await browser.newPage();
  return {
    version: await browser.version(),
    goto: async (url) => {
      // In another tab, since this protocol waits in vain for a page that a service worker gives to an old one.
      const before = page;
      page = await browser.newPage();
      await before.close();
      await page.goto(url);
    },
    run: async <T>(body: string, given?: unknown) =>
      // As text, since a value that comes twice would come once.
      JSON.parse(
        (await page.evaluate(
          `(async (given) => {${body}})(${JSON.stringify(given ?? null)}).then((value) => JSON.stringify(value ?? null))`,
        )) as string,
      ) as T,
    type: (selector, text) => page.type(selector, text),
    close: () => browser.close(),
  };
}

/** WebKitGTK by its WebDriver, on a screen that nobody sees. */
async function openWebKit(): Promise<Browser> {
  const processes: ChildProcess[] = [];
  const env: NodeJS.ProcessEnv = {
    ...process.env,
    HOME: mkdtempSync('/tmp/dimec-webkit-'),
    WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS: '1',
  };
  if (!env['DISPLAY']) {
    const screen = `:${90 + Math.floor(Math.random() * 900)}`;
    processes.push(spawn('Xvfb', [screen, '-screen', '0', '1280x900x24', '-nolisten', 'tcp'], { stdio: 'ignore' }));
    env['DISPLAY'] = screen;
    await sleep(1_000);
  }
  const port = await freePort();
  processes.push(spawn(WEBKIT, [`--port=${port}`, '--host=127.0.0.1'], { env, stdio: 'ignore' }));
  const ask = async (method: string, path: string, body?: unknown): Promise<unknown> => {
    const response = await fetch(`http://127.0.0.1:${port}${path}`, {
      method,
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const { value } = (await response.json()) as { value: { error?: string; message?: string } | null };
    if (!response.ok) throw new Error(`${path}: ${value?.error}: ${value?.message}`);
    return value;
  };
  for (let n = 0; ; n += 1) {
    try {
      await ask('GET', '/status');
      break;
    } catch (error) {
      if (n > 50) throw error;
      await sleep(200);
    }
  }
  const options = { 'webkitgtk:browserOptions': { binary: miniBrowser(), args: ['--automation'] } };
  const session = (await ask('POST', '/session', { capabilities: { alwaysMatch: options } })) as {
    sessionId: string;
    capabilities: { browserVersion: string };
  };
  const own = `/session/${session.sessionId}`;
  await ask('POST', `${own}/timeouts`, { script: 900_000, pageLoad: 120_000 });
  return {
    version: session.capabilities.browserVersion,
    goto: async (url) => {
      await ask('POST', `${own}/url`, { url });
    },
    run: async <T>(body: string, given?: unknown) => {
      const script = `const [given, done] = arguments; (async () => {${body}})().then((value) => done({ value }), (error) => done({ fault: String(error) }));`;
      const found = (await ask('POST', `${own}/execute/async`, { script, args: [given ?? null] })) as {
        value?: T;
        fault?: string;
      };
      if (found.fault !== undefined) throw new Error(found.fault);
      return found.value as T;
    },
    type: async (selector, text) => {
      const element = (await ask('POST', `${own}/element`, { using: 'css selector', value: selector })) as Record<
        string,
        string
      >;
      await ask('POST', `${own}/element/${Object.values(element)[0]}/value`, { text });
    },
    close: async () => {
      await ask('DELETE', own).catch(() => undefined);
      for (const each of processes.reverse()) {
        each.kill();
        if (each.exitCode === null && each.signalCode === null) await once(each, 'exit');
      }
    },
  };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return port;
}

/** Return where Debian has the browser that the driver starts. */
function miniBrowser(): string {
  const found = readdirSync('/usr/lib').flatMap((triplet) =>
    ['4.1', '4.0']
      .map((version) => `/usr/lib/${triplet}/webkit2gtk-${version}/MiniBrowser`)
      .filter((path) => existsSync(path)),
  );
  return found[0] ?? 'MiniBrowser';
}
