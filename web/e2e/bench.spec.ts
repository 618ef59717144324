/** Figures of the page in a browser on this machine: BENCH=FILE npx playwright test bench */
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { cp, readFile, readdir } from 'node:fs/promises';
import { loadavg } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';
import { type EngineName, missing, openBrowser } from './engines.js';
import { expect, start, test } from './fixtures.js';
import type { Timed } from './harness/main.js';
import { PYTHON, bundle } from './tiers.js';

const FILE = process.env['BENCH'];
const HARNESS = fileURLToPath(new URL('../dist-harness', import.meta.url));
const LENGTHS = [13, 50];
const ROUNDS = 200;

const PYTHON_TIMES = `
import json, sys, time
from pathlib import Path
import numpy as np
from dimec.bundle import load_tier
from dimec.bundle.engines import TierEngine
tier = load_tier(Path(sys.argv[1]) / "mobile")
engine, tokenizer, zero = TierEngine(tier, threads=1), tier.tokenizer(), tier.exit_zero()
told = []
for text in json.load(sys.stdin):
    times = {}
    for _ in range(${ROUNDS}):
        began = time.perf_counter()
        batch, whole = tokenizer.encode_one(text, None)
        words = time.perf_counter()
        zero.read(whole)
        now = time.perf_counter()
        times.setdefault("tokens", []).append(words - began)
        times.setdefault("0", []).append(now - words)
        spent, began = now - words, time.perf_counter()
        hidden, _ = engine.embed(batch)
        for layer in tier.layers:
            hidden, _ = engine.segment(layer, hidden, batch.attention_mask)
            times.setdefault(str(layer), []).append(time.perf_counter() - began)
    told.append({"n": len(batch.input_ids[0]), "ms": {k: 1e3 * float(np.quantile(v, 0.1)) for k, v in times.items()}})
print(json.dumps(told))
`;

test('figures', async ({ page, stage }) => {
  test.skip(!FILE, 'BENCH names no file');
  test.setTimeout(900_000);
  const own = bundle();
  const float = bundle('dimec-cascade', { quantized: false });
  const site = await stage.open({ bundle: own });
  const found: Record<string, unknown> = { load: loadavg()[0] };

  const sizes = { raw: 0, gzip: 0, brotli: 0 };
  const model = { raw: 0, gzip: 0, brotli: 0 };
  const manifest = JSON.parse(readFileSync(join(site.folder, 'bundle/manifest.json'), 'utf-8')) as { layers: number[] };
  const graphs = ['embedding.onnx', ...manifest.layers.map((layer) => `segment-${layer}.onnx`)];
  const read = [
    'manifest.json',
    'tokenizer.json',
    'exit-zero.safetensors',
    'policy.json',
    'policy.safetensors',
    ...graphs,
  ];
  const assets = (await readdir(join(site.folder, 'assets'))).map((name) => `assets/${name}`);
  for (const name of ['index.html', 'site.json', 'sw.js', ...assets, ...read.map((each) => `bundle/${each}`)]) {
    const file = await readFile(join(site.folder, name));
    const gzip = gzipSync(file, { level: 6 }).length;
    const brotli = brotliCompressSync(file, { params: { [constants.BROTLI_PARAM_QUALITY]: 6 } }).length;
    for (const sum of name.startsWith('bundle/') ? [sizes, model] : [sizes]) {
      sum.raw += file.length;
      sum.gzip += Math.min(gzip, file.length);
      sum.brotli += Math.min(brotli, file.length);
    }
  }
  found['bytes'] = { all: sizes, model };

  let began = performance.now();
  await start(page, site.url);
  found['first_load_ms'] = performance.now() - began;
  await expect(page.getByText('Works offline')).toBeVisible({ timeout: 60_000 });
  await site.stop();
  began = performance.now();
  await start(page, site.url);
  found['second_load_offline_ms'] = performance.now() - began;
  const session = await page.context().newCDPSession(page);
  await session.send('Performance.enable');

  const words = 'the film is long and not without its moments of grace but it does not quite come together in the end '
    .repeat(4)
    .split(' ');
  const texts = LENGTHS.map((n) => words.slice(0, n - 2).join(' '));
  const other = await stage.open({ bundle: own });
  await cp(HARNESS, join(other.folder, 'harness'), { recursive: true });
  await cp(join(float, 'mobile'), join(other.folder, 'harness/float'), { recursive: true });
  const engines: Record<string, unknown> = {};
  for (const engine of ['chromium', 'firefox', 'webkit'] as const satisfies EngineName[]) {
    if (missing(engine)) continue;
    const browser = await openBrowser(engine);
    await browser.goto(`${other.url}harness/index.html`);
    for (const [weights, threads] of [
      ['int8', 1],
      ['int8', 2],
      ['float32', 1],
    ] as const) {
      const timed = await browser.run<Timed | string>(
        'for (let n = 0; !window.harness && n < 100; n += 1) await new Promise((on) => setTimeout(on, 100)); return window.harness.timed(given.places, given.texts, given.rounds).catch(String);',
        { places: { bundle: weights === 'int8' ? '../bundle/' : './float/', threads }, texts, rounds: ROUNDS },
      );
      engines[`${engine} ${browser.version}, ${weights}, ${threads} thread${threads > 1 ? 's' : ''}`] = timed;
      await browser.goto(`${other.url}harness/index.html`);
    }
    await browser.close();
  }
  found['engines'] = engines;
  const python = (folder: string): unknown =>
    JSON.parse(execFileSync(PYTHON, ['-c', PYTHON_TIMES, folder], { input: JSON.stringify(texts) }).toString());
  found['python'] = { int8: python(own), float32: python(float) };
  found['load_after'] = loadavg()[0];
  writeFileSync(FILE!, `${JSON.stringify(found, null, 2)}\n`);
  console.log(JSON.stringify(found, null, 1));
});
