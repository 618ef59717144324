/** The device: texts go in, answers come out, by the policy of a bundle. */
import { type Files, type Loading, type Manifest, WebFiles } from './bundle.js';
import { TierClient, type Traffic, checkedUrl } from './client.js';
import { costOf } from './costs.js';
import { type Engine, OrtEngine, type EngineOptions, graphNames } from './engine.js';
import { BundleError, DeviceError } from './errors.js';
import { ExitZero } from './exit-zero.js';
import { type Policy, readPolicy } from './policies/index.js';
import { readTensors } from './safetensors.js';
import { type Answer, Sample } from './sample.js';
import { DEFAULTS, type Settings } from './settings.js';
import { Keeper, type Keeping } from './state.js';
import { TIERS, type Tier, type View, step } from './tiers.js';
import { type Text, TextTokenizer } from './tokens.js';

export interface DeviceOptions {
  /** URL of the folder with the mobile tier's files. */
  readonly bundle: string;
  /** URL of a folder with another operating point's manifest and policy files. */
  readonly point?: string | undefined;
  readonly edge?: string | null | undefined;
  readonly cloud?: string | null | undefined;
  readonly token?: string | null | undefined;
  readonly settings?: Partial<Settings> | undefined;
  readonly engine?: EngineOptions | undefined;
  readonly onLoading?: ((loading: Loading) => void) | undefined;
  readonly fetch?: typeof fetch | undefined;
}

/** What a bundle says that a page shows. */
export interface About {
  readonly labels: readonly string[];
  readonly pairs: boolean;
  readonly layers: readonly number[];
  readonly depths: Readonly<Record<Tier, number>>;
  readonly policy: string;
  readonly learns: boolean;
  readonly quantized: boolean;
  readonly fingerprint: string;
  /** What the cloud's whole model costs for one text, in λ. */
  readonly allCloudCost: number;
  readonly keeping: Keeping;
  readonly updates: number;
  /** Whether the bundle's files are kept for a start without a network. */
  readonly filesKept: boolean;
}

/** The parts that a device is made of; tests give others. */
export interface Parts {
  readonly manifest: Manifest;
  readonly policy: Policy;
  readonly tokenizer: Pick<TextTokenizer, 'encode'>;
  readonly exitZero: Pick<ExitZero, 'read'>;
  readonly engine: Engine;
}

const POLICY_FILES = ['policy.json', 'policy.safetensors'] as const;

export class Device {
  readonly manifest: Manifest;
  readonly tokenizer: Parts['tokenizer'];
  readonly exitZero: Parts['exitZero'];
  readonly engine: Engine;
  readonly settings: Settings;
  readonly clients = new Map<Tier, TierClient>();
  /** The layers of the exits that are known, by tier. */
  readonly exits: ReadonlyMap<Tier, readonly number[]>;
  policy!: Policy;
  /** The layer at which each tier ends where it stands in. */
  last: ReadonlyMap<Tier, number> = new Map();
  private keeper: Keeper | null = null;
  private number = 0;
  private files: WebFiles | null = null;
  private readonly session = crypto.randomUUID().replaceAll('-', '').slice(0, 12);
  private readonly fetcher: typeof fetch;

  private constructor(parts: Parts, options: Omit<DeviceOptions, 'bundle'>) {
    this.manifest = parts.manifest;
    this.tokenizer = parts.tokenizer;
    this.exitZero = parts.exitZero;
    this.engine = parts.engine;
    this.settings = { ...DEFAULTS, ...options.settings };
    this.fetcher = options.fetch ?? ((...request) => fetch(...request));
    this.exits = new Map([['mobile', [0, ...parts.manifest.layers]]]);
    for (const tier of ['edge', 'cloud'] as const) {
      const url = options[tier];
      if (!url) continue;
      const { model_fingerprint: fingerprint, label_names: labels } = this.manifest;
      const client = new TierClient(
        tier,
        checkedUrl(url, tier),
        fingerprint,
        labels.length,
        this.settings,
        this.fetcher,
      );
      this.clients.set(tier, client);
    }
    this.setToken(options.token ?? null);
  }

  /** Fetch a bundle, check it, and open its graphs. */
  static async open(options: DeviceOptions): Promise<Device> {
    const fetcher = options.fetch ?? ((...request: Parameters<typeof fetch>) => fetch(...request));
    const files = await WebFiles.open(options.bundle, fetcher, options.onLoading);
    const { manifest } = files;
    const graphs = graphNames(manifest.layers);
    files.expect(
      ['tokenizer.json', 'exit-zero.safetensors', ...POLICY_FILES, ...graphs],
      options.engine?.runtime?.bytes ?? 0,
    );
    // The policy comes first: one that is not known is refused before the graphs are fetched.
    const policy = await policyOf(files);
    const tokenizer = new TextTokenizer(await files.read('tokenizer.json'), manifest.max_length, manifest.cut);
    const zeros = readTensors('exit-zero.safetensors', await files.read('exit-zero.safetensors'));
    const exitZero = ExitZero.of(zeros, manifest.label_names.length);
    const engine = await OrtEngine.open(files, options.engine ?? { threads: 1 }, fetcher, (bytes) => files.came(bytes));
    const device = await Device.of({ manifest, policy, tokenizer, exitZero, engine }, options);
    device.files = files;
    if (options.point) await device.setPoint(options.point);
    return device;
  }

  static async of(parts: Parts, options: Omit<DeviceOptions, 'bundle'>): Promise<Device> {
    const device = new Device(parts, options);
    await device.adopt(parts.policy, parts.manifest);
    return device;
  }

  /** Go on at another operating point: the policy of a bundle of the same model. */
  async setPoint(folder: string): Promise<void> {
    const files = await WebFiles.open(folder, this.fetcher);
    if (files.manifest.model_fingerprint !== this.manifest.model_fingerprint)
      throw new BundleError(`${folder} is of another model than the bundle: write the site again`);
    await this.adopt(await policyOf(files), files.manifest);
  }

  private async adopt(policy: Policy, manifest: Manifest): Promise<void> {
    for (const each of policy.endpoints())
      if (each.tier === 'mobile' && each.layer > 0 && !manifest.layers.includes(each.layer))
        throw new BundleError(
          `the policy ${policy.name} reads layer ${each.layer} on the device, which the bundle lacks: export it again`,
        );
    await this.keeper?.close();
    this.policy = policy;
    this.last = new Map(
      TIERS.filter((tier) => tier === 'mobile' || this.clients.has(tier)).map((tier) => [tier, this.lastExit(tier)]),
    );
    const key = [manifest.model_fingerprint, ...POLICY_FILES.map((name) => manifest.files[name]?.sha256)].join(' ');
    this.keeper = await Keeper.open(policy, key, this.settings);
  }

  /** Return the deepest exit that the policy has on a tier. */
  private lastExit(tier: Tier): number {
    const own = this.policy.endpoints().flatMap((each) => (each.tier === tier ? [each.layer] : []));
    const wanted = own.length > 0 ? Math.max(...own) : this.policy.depths[tier];
    const held = (this.exits.get(tier) ?? []).filter((layer) => layer <= wanted);
    return held.length > 0 ? Math.max(...held) : wanted;
  }

  get about(): About {
    const { manifest, policy, keeper } = this;
    return {
      labels: manifest.label_names,
      pairs: manifest.task.pairs,
      layers: manifest.layers,
      depths: policy.depths,
      policy: policy.name,
      learns: policy.learns,
      quantized: manifest.quantized,
      fingerprint: manifest.model_fingerprint,
      allCloudCost: costOf(manifest.costs, [step('cloud', policy.depths.cloud)]),
      keeping: keeper?.status ?? 'nothing to keep',
      updates: keeper?.updates ?? 0,
      filesKept: this.files?.kept ?? true,
    };
  }

  /** Requests and bytes to and from each server so far. */
  get traffic(): Partial<Record<Tier, Traffic>> {
    return Object.fromEntries([...this.clients].map(([tier, client]) => [tier, { ...client.traffic }]));
  }

  /** Take another bearer token for the servers; it is kept in memory alone. */
  setToken(token: string | null): void {
    for (const client of this.clients.values()) client.setToken(token);
  }

  /** Ask every tier again that was left alone: the network is back. */
  retryTiers(): void {
    for (const client of this.clients.values()) client.breaker.close();
  }

  /** Classify one text. */
  async classify(text: Text): Promise<Answer> {
    const parts = typeof text === 'string' ? 1 : text.length;
    if (parts !== (this.manifest.task.pairs ? 2 : 1))
      throw new DeviceError(`this bundle takes ${this.manifest.task.pairs ? 'pairs of texts' : 'single texts'}`);
    this.number += 1;
    return new Sample(this, text, `${this.session}-${this.number - 1}`).run();
  }

  /** Let the policy learn from an answered text. */
  learn(view: View): void {
    this.policy.learn(view);
    this.keeper?.learnt();
  }

  /** Keep what was learnt. */
  async close(): Promise<void> {
    await this.keeper?.close();
  }
}

async function policyOf(files: Files): Promise<Policy> {
  const [document, arrays] = [await files.read(POLICY_FILES[0]), await files.read(POLICY_FILES[1])];
  let parsed: unknown;
  try {
    parsed = JSON.parse(new TextDecoder().decode(document));
  } catch {
    throw new BundleError('policy.json is no JSON: export the bundle again');
  }
  return readPolicy(files.manifest.policy, parsed, readTensors(POLICY_FILES[1], arrays));
}
