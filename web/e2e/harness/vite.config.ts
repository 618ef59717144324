import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vite';
import page from '../../vite.config.js';

export default defineConfig({
  ...page,
  plugins: [],
  root: fileURLToPath(new URL('.', import.meta.url)),
  build: {
    ...page.build,
    outDir: fileURLToPath(new URL('../../dist-harness', import.meta.url)),
    emptyOutDir: true,
    license: false,
  },
});
