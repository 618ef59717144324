/** A device in a worker of its own, so that no page waits for it. */
import * as Comlink from 'comlink';
import { Device, type About, type DeviceOptions } from './device.js';
import { DeviceError, messageOf } from './errors.js';
import { RuntimeFault } from './engine.js';
import type { Loading } from './bundle.js';
import type { Answer } from './sample.js';
import type { Text } from './tokens.js';

/** A result, or the sentence that says why there is none: errors lose their class on the way out of a worker. */
export type Told<T> = { readonly value: T } | { readonly fault: string; readonly runtime: boolean };

async function told<T>(work: () => Promise<T>): Promise<Told<T>> {
  try {
    return { value: await work() };
  } catch (error) {
    if (!(error instanceof DeviceError)) console.error(error);
    return { fault: messageOf(error), runtime: error instanceof RuntimeFault };
  }
}

let device: Device | null = null;

function own(): Device {
  if (!device) throw new DeviceError('the device is not open');
  return device;
}

export const api = {
  open: (
    options: Omit<DeviceOptions, 'fetch' | 'onLoading'>,
    onLoading: (loading: Loading) => void,
  ): Promise<Told<About>> =>
    told(async () => {
      device = await Device.open({ ...options, onLoading });
      return device.about;
    }),
  classify: (text: Text): Promise<Told<Answer>> => told(() => own().classify(text)),
  setToken: (token: string | null): Promise<Told<void>> =>
    told(() => {
      own().setToken(token);
      return Promise.resolve();
    }),
  setPoint: (folder: string): Promise<Told<About>> =>
    told(async () => {
      await own().setPoint(folder);
      return own().about;
    }),
  retryTiers: (): void => own().retryTiers(),
  about: (): About => own().about,
  traffic: (): Device['traffic'] => own().traffic,
  close: async (): Promise<void> => device?.close(),
};

if (typeof WorkerGlobalScope !== 'undefined' && globalThis instanceof WorkerGlobalScope) Comlink.expose(api);
