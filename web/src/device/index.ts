/** `@dimec/device`: the mobile tier of a bundle, in a browser. */
export type { Loading } from './bundle.js';
export type { Traffic } from './client.js';
export { type About, Device, type DeviceOptions } from './device.js';
export type { EngineOptions } from './engine.js';
export { BundleError, ContractError, DeviceError, OptionError } from './errors.js';
export { IN_FLIGHT, RemoteDevice, type RemoteOptions } from './remote.js';
export type { Answer, Reason, Stop } from './sample.js';
export { DEFAULTS, type Settings } from './settings.js';
export type { Keeping } from './state.js';
export { TIERS, type Depths, type Step, type Tier } from './tiers.js';
export type { Text } from './tokens.js';
