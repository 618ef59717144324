/** A site as `dimec web` lays it out, served with the headers that a test wants. */
import { createHash } from 'node:crypto';
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { type Server, createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const DIST = fileURLToPath(new URL('../dist', import.meta.url));
const TYPES: Readonly<Record<string, string>> = {
  html: 'text/html; charset=utf-8',
  js: 'text/javascript',
  mjs: 'text/javascript',
  css: 'text/css',
  json: 'application/json',
  wasm: 'application/wasm',
  svg: 'image/svg+xml',
  png: 'image/png',
  webmanifest: 'application/manifest+json',
};

export interface SiteOptions {
  /** The bundle's folder. */
  readonly bundle: string;
  readonly edge?: string | null;
  readonly cloud?: string | null;
  readonly title?: string;
  readonly examples?: readonly string[];
  /** Folders of bundles of the same model at other operating points, by their names. */
  readonly points?: Readonly<Record<string, string>>;
  readonly isolated?: boolean;
}

export class Site {
  url = '';
  private told: Partial<Record<keyof SiteOptions, unknown>> = {};

  private constructor(
    readonly folder: string,
    private readonly server: Server,
    private readonly isolated: boolean,
  ) {}

  static async open({
    bundle,
    edge = null,
    cloud = null,
    title = 'Film reviews',
    examples = [],
    points = {},
    isolated = true,
  }: SiteOptions): Promise<Site> {
    const folder = await mkdtemp(join(tmpdir(), 'dimec-site-'));
    await cp(DIST, folder, { recursive: true });
    await cp(join(bundle, 'mobile'), join(folder, 'bundle'), { recursive: true });
    const named = Object.keys(points).map((name, place) => ({ name, folder: `points/${place}` }));
    for (const [place, own] of Object.values(points).entries())
      await cp(join(own, 'mobile'), join(folder, named[place]!.folder), { recursive: true });
    const server = createServer((request, response) => {
      const url = new URL(request.url ?? '', 'http://x');
      const path = url.pathname === '/' ? '/index.html' : decodeURIComponent(url.pathname);
      readFile(join(folder, path)).then(
        (file) => {
          const forEver = path.startsWith('/assets/');
          response.writeHead(200, {
            ...site.headers,
            'Content-Type': TYPES[path.split('.').at(-1)!] ?? 'application/octet-stream',
            'Content-Length': file.length,
            'Cache-Control': forEver ? 'public, max-age=31536000, immutable' : 'no-cache',
            ETag: `"${createHash('sha256').update(file).digest('hex')}"`,
          });
          response.end(file);
        },
        () => response.writeHead(404, site.headers).end(),
      );
    });
    const site = new Site(folder, server, isolated);
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    site.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
    await site.say({ title, edge, cloud, examples, points: named });
    return site;
  }

  /** Say something else in `site.json`, and allow the tiers that it names. */
  async say(told: Partial<Record<keyof SiteOptions, unknown>>): Promise<void> {
    this.told = { ...this.told, ...told };
    await writeFile(join(this.folder, 'site.json'), JSON.stringify({ format: 1, ...this.told }));
  }

  private get headers(): Record<string, string> {
    const tiers = [this.told.edge, this.told.cloud].flatMap((url) => (url ? [new URL(url as string).origin] : []));
    const policy = `default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; img-src 'self'; manifest-src 'self'; connect-src 'self' ${tiers.join(' ')}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`;
    return {
      'Content-Security-Policy': policy,
      ...(this.isolated
        ? { 'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp' }
        : {}),
    };
  }

  /** Change one byte of a file. */
  async tamper(name: string): Promise<void> {
    const file = await readFile(join(this.folder, name));
    const place = Math.floor(file.length / 2);
    file[place] = file[place]! ^ 1;
    await writeFile(join(this.folder, name), file);
  }

  /** Change the text of a file. */
  async edit(name: string, change: (text: string) => string): Promise<void> {
    const path = join(this.folder, name);
    await writeFile(path, change(await readFile(path, 'utf-8')));
  }

  /** Stop serving; the address answers no more. */
  async stop(): Promise<void> {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }

  async close(): Promise<void> {
    if (this.server.listening) await this.stop();
    await rm(this.folder, { recursive: true });
  }
}
