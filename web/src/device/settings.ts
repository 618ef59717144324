/** What may be set on a device; the same names and defaults as Python's. */
export interface Settings {
  /** Milliseconds that one text may wait for servers. */
  readonly deadlineMs: number;
  /** Requests to one tier for one text, the first included. */
  readonly attempts: number;
  readonly backoffMs: number;
  /** Failures in a row after which a tier is left alone for a while. */
  readonly opensAfter: number;
  readonly openMs: number;
  readonly maxOpenMs: number;
  readonly probeMs: number;
  readonly maxResponseBytes: number;
  /** Updates after which what is learnt is kept at the latest, and milliseconds. */
  readonly snapshotUpdates: number;
  readonly snapshotMs: number;
}

export const DEFAULTS: Settings = {
  deadlineMs: 5_000,
  attempts: 3,
  backoffMs: 50,
  opensAfter: 5,
  openMs: 2_000,
  maxOpenMs: 60_000,
  probeMs: 1_000,
  maxResponseBytes: 2 ** 20,
  snapshotUpdates: 100,
  snapshotMs: 5_000,
};
