/** What Python's device says of texts, by the same tiers. */
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { PYTHON } from './tiers.js';

export interface Expected {
  readonly label: string;
  readonly tier: string;
  readonly layer: number;
  readonly cost: number;
  readonly degraded: string | null;
  readonly probabilities: readonly number[];
  readonly ids: readonly number[];
}

export function expectedOf(bundle: string, edge: string, cloud: string, texts: readonly string[]): Expected[] {
  const script = fileURLToPath(new URL('expected.py', import.meta.url));
  const said = execFileSync(PYTHON, [script, bundle, edge, cloud], { input: JSON.stringify(texts), maxBuffer: 1e9 });
  return said
    .toString()
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Expected);
}
