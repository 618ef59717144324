/** A device in a worker, as a page calls it. */
import * as Comlink from 'comlink';
import type { Loading } from './bundle.js';
import type { About, Device, DeviceOptions } from './device.js';
import { DeviceError } from './errors.js';
import type { Answer } from './sample.js';
import type { Text } from './tokens.js';
import type { Told, api } from './worker.js';

export interface RemoteOptions extends Omit<DeviceOptions, 'fetch'> {
  /** Makes the worker; by default the one beside this file. */
  readonly worker?: () => Worker;
}

/** How many texts wait for servers at once. */
export const IN_FLIGHT = 16;

export class RemoteDevice {
  private constructor(
    private readonly worker: Worker,
    private readonly remote: Comlink.Remote<typeof api>,
    public about: About,
    /** How many threads the graphs run on. */
    readonly threads: number,
  ) {}

  /** Open a bundle; where the runtime does not start with threads, it is started with one. */
  static async open({ worker: make, onLoading, ...options }: RemoteOptions): Promise<RemoteDevice> {
    const wanted = options.engine?.threads ?? 1;
    for (const threads of new Set([wanted, 1])) {
      const worker = make ? make() : new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
      const remote = Comlink.wrap<typeof api>(worker);
      const failed = new Promise<Told<About>>((resolve) => {
        worker.onerror = (event) =>
          resolve({ fault: `the worker did not start (${event.message || 'it was refused'})`, runtime: true });
      });
      const tell = Comlink.proxy((loading: Loading) => onLoading?.(loading));
      const opened = remote.open({ ...options, engine: { ...options.engine, threads } }, tell);
      const found = await Promise.race([opened, failed]);
      if ('value' in found) return new RemoteDevice(worker, remote, found.value, threads);
      worker.terminate();
      if (!found.runtime || threads === 1) throw new DeviceError(found.fault);
    }
    throw new DeviceError('the runtime did not start');
  }

  async classify(text: Text): Promise<Answer> {
    return valueOf(await this.remote.classify(text));
  }

  /** Classify texts and give their answers in order; as many as may wait for servers are under way at once. */
  async *stream(texts: Iterable<Text>, inFlight = this.about.learns ? 1 : IN_FLIGHT): AsyncGenerator<Answer> {
    const waiting: Promise<Answer>[] = [];
    for (const text of texts) {
      const answer = this.classify(text);
      answer.catch(() => undefined); // It is thrown below, in its turn.
      waiting.push(answer);
      if (waiting.length >= inFlight) yield await waiting.shift()!;
    }
    while (waiting.length > 0) yield await waiting.shift()!;
  }

  /** Take another bearer token; it is kept in memory alone. */
  async setToken(token: string | null): Promise<void> {
    valueOf(await this.remote.setToken(token));
  }

  /** Go on at another operating point. */
  async setPoint(folder: string): Promise<void> {
    this.about = valueOf(await this.remote.setPoint(folder));
  }

  async retryTiers(): Promise<void> {
    await this.remote.retryTiers();
  }

  async refresh(): Promise<About> {
    return (this.about = await this.remote.about());
  }

  async traffic(): Promise<Device['traffic']> {
    return this.remote.traffic();
  }

  async close(): Promise<void> {
    await this.remote.close();
    this.worker.terminate();
  }
}

function valueOf<T>(told: Told<T>): T {
  if ('value' in told) return told.value;
  throw new DeviceError(told.fault);
}
