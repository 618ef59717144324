/** Real tiers: processes of `dimec serve`. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { join } from 'node:path';

export const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const VENV = join(ROOT, '.venv/bin');
/** The command and the interpreter, from the checkout's environment where it has one. */
export const DIMEC = process.env['DIMEC'] ?? (existsSync(join(VENV, 'dimec')) ? join(VENV, 'dimec') : 'dimec');
export const PYTHON = process.env['PYTHON'] ?? (existsSync(join(VENV, 'python')) ? join(VENV, 'python') : 'python3');
export const DATA = process.env['DIMEC_DATA'];

export interface TierOptions {
  readonly origin?: string | null;
  readonly token?: string | null;
  readonly port?: number;
  /** A folder that `dimec web` has written. */
  readonly site?: string;
}

export class ServedTier {
  private constructor(
    readonly url: string,
    private readonly process: ChildProcess,
  ) {}

  static async open(
    tier: 'edge' | 'cloud',
    bundle: string,
    { origin = null, token = null, port = 0, site }: TierOptions = {},
  ): Promise<ServedTier> {
    const allowed = [
      ...(origin === null ? [] : ['--allow-origin', origin]),
      ...(site === undefined ? [] : ['--site', site]),
    ];
    const child = spawn(
      DIMEC,
      ['serve', tier, bundle, '--port', String(port), '--threads', '1', '--log-level', 'error', ...allowed],
      {
        stdio: ['ignore', 'pipe', 'inherit'],
        env: { ...process.env, ...(token === null ? {} : { DIMEC_TOKEN: token }) },
      },
    );
    for await (const line of createInterface(child.stdout)) {
      const said = JSON.parse(line) as { event: string; url: string };
      if (said.event === 'ready') return new ServedTier(said.url, child);
    }
    throw new Error(`dimec serve ${tier} did not start`);
  }

  get port(): number {
    return Number(new URL(this.url).port);
  }

  /** End it without a warning, as a crash would. */
  async kill(): Promise<void> {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    this.process.kill('SIGKILL');
    await once(this.process, 'exit');
  }
}

/** Return a bundle's folder: the one that is there, or one that is fitted and exported here, once. */
export function bundle(policy = 'dimec-cascade', { quantized = true } = {}): string {
  const built = process.env['DIMEC_WEB_BUNDLES'] ?? join(ROOT, 'build/web');
  const folder = join(built, quantized ? policy : `${policy}-float`);
  if (existsSync(join(folder, 'mobile/manifest.json'))) return folder;
  const run = join(built, 'run');
  mkdirSync(built, { recursive: true });
  const data = DATA
    ? ['sst2', '--data', join(DATA, 'glue/sst2'), '--split', 'random', '--max-rows', '4000']
    : ['reviews'];
  if (!existsSync(run)) quietly('fit', ...data, '--epochs', '1', '--out', run);
  // At the usual price hardly a text leaves the device.
  const price = policy === 'dimec-cascade' ? ['--price', '0.01'] : [];
  const weights = quantized ? ['--quantize', 'mobile'] : [];
  quietly('export', run, '--out', folder, '--policy', policy, ...price, ...weights);
  return folder;
}

function quietly(...command: string[]): void {
  execFileSync(DIMEC, command, { stdio: ['ignore', 'ignore', 'inherit'] });
}
