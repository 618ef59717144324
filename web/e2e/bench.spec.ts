/**
 * Figures of the page in a browser on this machine: BENCH=FILE npx playwright test bench
 *
 * BENCH_BUNDLES=INT8,FLOAT32 names bundles of one run, by default those of the other tests, whose texts are short.
 * TRANSFORMERS names a folder with transformers.min.js of @huggingface/transformers and the ort-wasm-* files of the
 * onnxruntime-web that it depends on: it then runs the whole model, with 8-bit weights, beside the page.
 */
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
import { PYTHON, ROOT, bundle } from './tiers.js';

const FILE = process.env['BENCH'];
const BUNDLES = process.env['BENCH_BUNDLES']?.split(',');
const TRANSFORMERS = process.env['TRANSFORMERS'];
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

/** Writes the plain full model of `benchmarks/bench_bulk.py`, with 8-bit weights, as transformers.js reads one. */
const WHOLE_MODEL = `
import json, shutil, sys
from pathlib import Path
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
root, folder, out = map(Path, sys.argv[1:])
sys.path.insert(0, str(root / "benchmarks"))
from bench_bulk import full_model
from dimec.bundle import load_bundle
bundle = load_bundle(folder)
(out / "onnx").mkdir(parents=True)
plain = full_model(bundle, out / "float32.onnx")
model = onnx.load(plain)
[last] = [value.name for value in model.graph.output]
model.graph.initializer.append(onnx.helper.make_tensor("exit_axis", onnx.TensorProto.INT64, [1], [1]))
model.graph.node.append(onnx.helper.make_node("Squeeze", [last, "exit_axis"], ["logits"]))
names = bundle.cloud.manifest.label_names
del model.graph.output[:]
model.graph.output.append(onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", len(names)]))
onnx.save(model, plain)
quantize_dynamic(plain, out / "onnx/model_quantized.onnx", per_channel=True, weight_type=QuantType.QInt8)
plain.unlink()
shutil.copy(folder / "cloud/tokenizer.json", out)
(out / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
labels = {str(place): name for place, name in enumerate(names)}
(out / "config.json").write_text(json.dumps({"model_type": "bert", "id2label": labels}))
`;

/** Runs in the page: milliseconds to open the whole model, and of each text, the tenth percentile. */
const WHOLE_TIMES = `
const { pipeline, env } = await import(new URL('transformers/transformers.min.js', location.href).href);
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = '/harness/models/'; // a whole URL would count as remote
env.useWasmCache = false; // it starts scripts from blobs, which the page's policy forbids
env.backends.onnx.wasm.wasmPaths = new URL('transformers/', location.href).href;
env.backends.onnx.wasm.numThreads = 1;
let began = performance.now();
const classify = await pipeline('text-classification', 'whole', { dtype: 'q8', device: 'wasm' });
const openMs = performance.now() - began;
const texts = [];
for (const text of given.texts) {
  const taken = [];
  for (let round = 0; round < given.rounds; round += 1) {
    began = performance.now();
    await classify(text);
    taken.push(performance.now() - began);
  }
  taken.sort((one, other) => one - other);
  texts.push(taken[Math.floor(taken.length / 10)]);
}
return { openMs, texts };
`;

test('figures', async ({ page, stage }) => {
  test.skip(!FILE, 'BENCH names no file');
  test.setTimeout(900_000);
  const [own, float] = BUNDLES ?? [bundle(), bundle('dimec-cascade', { quantized: false })];
  if (own === undefined || float === undefined) throw new Error('BENCH_BUNDLES names two bundles');
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
  if (TRANSFORMERS) {
    await cp(TRANSFORMERS, join(other.folder, 'harness/transformers'), { recursive: true });
    execFileSync(PYTHON, ['-c', WHOLE_MODEL, ROOT, own, join(other.folder, 'harness/models/whole')]);
  }
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
    if (TRANSFORMERS) {
      const told = 'return (async () => {' + WHOLE_TIMES + '})().catch(String);';
      engines[`${engine}, transformers.js, the whole model`] = await browser.run(told, { texts, rounds: ROUNDS / 4 });
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
