import { createHash } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { type Plugin, type UserConfig, build, defineConfig } from 'vite';

const own = (path: string): string => fileURLToPath(new URL(path, import.meta.url));
const wasm = createRequire(import.meta.url).resolve('onnxruntime-web/ort-wasm-simd-threaded.wasm');

/** Builds the service worker, which holds the names of all other files, and the notices of what the scripts are made of. */
function serviceWorker(): Plugin {
  return {
    name: 'service-worker',
    apply: 'build',
    async generateBundle(_options, bundle) {
      const still = ['manifest.webmanifest', 'icon.svg', 'icon-192.png', 'icon-512.png'];
      const hash = createHash('sha256');
      for (const name of still) hash.update(readFileSync(own(`public/${name}`)));
      const names = Object.keys(bundle).sort();
      for (const name of names) hash.update(name);
      const files = [...names.filter((name) => name.startsWith('assets/')), ...still].map((name) => `./${name}`);
      const made = await build({
        configFile: false,
        logLevel: 'warn',
        define: {
          __SITE_FILES__: JSON.stringify(files),
          __SITE_VERSION__: JSON.stringify(hash.digest('hex').slice(0, 12)),
        },
        build: {
          write: false,
          target: 'es2022',
          rolldownOptions: { input: own('src/service-worker.ts'), output: { format: 'iife', entryFileNames: 'sw.js' } },
        },
      });
      if (!('output' in made)) throw new Error('the service worker was not built');
      this.emitFile({ type: 'asset', fileName: 'sw.js', source: made.output[0].code });
    },
  };
}

export default defineConfig({
  base: './',
  plugins: [serviceWorker()],
  // The runtime's loader as a file of its own, which its threads load too.
  resolve: { conditions: ['onnxruntime-web-use-extern-wasm', 'module', 'browser', 'development|production'] },
  define: { __WASM_BYTES__: String(statSync(wasm).size) },
  oxc: { jsx: { runtime: 'automatic', importSource: 'preact' } },
  worker: { format: 'es' },
  build: {
    target: 'es2022',
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    license: { fileName: 'licenses.txt' },
  },
  server: { headers: { 'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp' } },
} satisfies UserConfig);
