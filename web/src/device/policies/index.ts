/** The policies that this library knows, read from a bundle's policy files. */
import * as v from 'valibot';
import { BundleError, DeviceError, messageOf } from '../errors.js';
import { type Tensors, valuesOf } from '../safetensors.js';
import type { Depths } from '../tiers.js';
import { Cascade, CascadeSettings } from './cascade.js';
import {
  Centroids,
  DimecDc,
  DimecDcSettings,
  Dimee,
  DimeeSettings,
  EarlyExit,
  EarlyExitSettings,
} from './first-sure.js';
import { Policy } from './policy.js';

export { type Learnt, type Leaves, Policy } from './policy.js';

type Build = (depths: Depths, settings: unknown, centroids: () => Centroids) => Policy;

const POLICIES: Readonly<Record<string, Build>> = {
  'dimec-cascade': (depths, settings) => new Cascade(depths, v.parse(CascadeSettings, settings)),
  'early-exit': (depths, settings) => new EarlyExit(depths, v.parse(EarlyExitSettings, settings)),
  'dimec-dc-fixed': dc(false),
  'dimec-dc-adaptive': dc(true),
  'dimee-fixed': ee(false),
  'dimee-adaptive': ee(true),
};

function dc(adaptive: boolean): Build {
  return (depths, settings, centroids) => {
    v.parse(DimecDcSettings, settings);
    return new DimecDc(depths, centroids(), adaptive);
  };
}

function ee(adaptive: boolean): Build {
  return (depths, settings, centroids) => new Dimee(depths, centroids(), v.parse(DimeeSettings, settings), adaptive);
}

const layer = v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(1024));
const Document = v.object({
  format: v.literal(1),
  policies: v.record(
    v.string(),
    v.object({
      depths: v.object({ mobile: layer, edge: layer, cloud: layer }),
      settings: v.record(v.string(), v.unknown()),
    }),
  ),
});

/** Read a policy by its name in the manifest. */
export function readPolicy(name: string, document: unknown, tensors: Tensors): Policy {
  const build = Object.hasOwn(POLICIES, name) ? POLICIES[name] : undefined;
  if (!build)
    throw new BundleError(
      `the bundle's policy is ${name}, which a browser cannot run: export it with --policy ${Object.keys(POLICIES).join(', ')}`,
    );
  try {
    const entry = v.parse(Document, document).policies[name];
    if (!entry) throw new Error(`it does not hold ${name}`);
    return build(entry.depths, entry.settings, () => centroidsOf(name, tensors));
  } catch (error) {
    if (error instanceof BundleError) throw error;
    const why = error instanceof DeviceError ? error.message : quoteOf(error);
    throw new BundleError(`policy.json cannot be used (${why}): export the bundle again`);
  }
}

function quoteOf(error: unknown): string {
  return v.isValiError<typeof Document>(error)
    ? `${v.getDotPath(error.issues[0]) ?? 'it'}: ${error.message}`
    : messageOf(error);
}

function centroidsOf(name: string, { arrays }: Tensors): Centroids {
  const [sums, counts] = [arrays.get(`${name}/sums`), arrays.get(`${name}/counts`)];
  if (!sums || !counts) throw new BundleError('policy.safetensors lacks the centroids: export the bundle again');
  return new Centroids(valuesOf(sums, 'F64'), Float64Array.from(valuesOf(counts, 'I64'), Number));
}
