/** What a device's policy has learnt, kept in IndexedDB over restarts; one tab at a time keeps it. */
import { messageOf } from './errors.js';
import type { Learnt, Policy } from './policies/index.js';
import type { Settings } from './settings.js';

const STORE = 'states';

interface Kept extends Learnt {
  readonly updates: number;
}

/** Why nothing is kept, or that it is. */
export type Keeping = 'nothing to keep' | 'kept' | 'another tab keeps it' | 'storage is denied';

export class Keeper {
  updates = 0;
  status: Keeping = 'nothing to keep';
  private unsaved = 0;
  private timer: ReturnType<typeof setTimeout> | null = null;
  private database: IDBDatabase | null = null;
  private release: () => void = () => undefined;

  private constructor(
    private readonly policy: Policy,
    private readonly key: string,
    private readonly settings: Settings,
  ) {}

  /** Open what was kept under a key, which names the model and the policy, and let the policy go on from it. */
  static async open(policy: Policy, key: string, settings: Settings): Promise<Keeper> {
    const keeper = new Keeper(policy, key, settings);
    if (policy.learns) await keeper.begin();
    return keeper;
  }

  private async begin(): Promise<void> {
    if (!(await this.hold())) {
      this.status = 'another tab keeps it';
      return;
    }
    try {
      this.database = await opened();
      const found = await finished<Kept | undefined>(this.store('readonly').get(this.key));
      if (found) {
        this.policy.resume(found);
        this.updates = found.updates;
      }
      this.status = 'kept';
    } catch {
      this.status = 'storage is denied';
    }
  }

  /** Take the lock of this state, until `close`; false where another tab has it. */
  private async hold(): Promise<boolean> {
    if (typeof navigator === 'undefined' || !('locks' in navigator)) return true;
    return new Promise((resolve) => {
      const until = new Promise<void>((done) => (this.release = done));
      navigator.locks
        .request(`dimec ${this.key}`, { ifAvailable: true }, (lock) => {
          resolve(lock !== null);
          return lock ? until : undefined;
        })
        .catch(() => resolve(true));
    });
  }

  /** Take note of one update, and keep it soon. */
  learnt(): void {
    this.updates += 1;
    if (this.status !== 'kept') return;
    this.unsaved += 1;
    if (this.unsaved >= this.settings.snapshotUpdates) void this.save();
    else this.timer ??= setTimeout(() => void this.save(), this.settings.snapshotMs);
  }

  /** Keep what is not yet kept; what cannot be kept costs no answer. */
  async save(): Promise<void> {
    if (this.timer !== null) clearTimeout(this.timer);
    this.timer = null;
    const learnt = this.policy.learnt();
    if (!learnt || this.unsaved === 0 || this.status !== 'kept') return;
    this.unsaved = 0;
    try {
      await finished(this.store('readwrite').put({ ...learnt, updates: this.updates }, this.key));
    } catch (error) {
      console.warn(`what was learnt could not be kept: ${messageOf(error)}`);
      this.status = 'storage is denied';
    }
  }

  async close(): Promise<void> {
    await this.save();
    this.database?.close();
    this.release();
  }

  private store(mode: IDBTransactionMode): IDBObjectStore {
    return this.database!.transaction(STORE, mode).objectStore(STORE);
  }
}

function opened(): Promise<IDBDatabase> {
  const request = indexedDB.open('dimec', 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE);
  return finished(request);
}

function finished<T>(request: IDBRequest): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result as T);
    request.onerror = () => reject(request.error ?? new Error('the database refused'));
  });
}
