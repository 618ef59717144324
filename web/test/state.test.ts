import 'fake-indexeddb/auto';
import { expect, test, vi } from 'vitest';
import { Centroids, DimecDc } from '../src/device/policies/first-sure.js';
import { DEFAULTS } from '../src/device/settings.js';
import { Keeper } from '../src/device/state.js';
import { step } from '../src/device/tiers.js';

const DEPTHS = { mobile: 2, edge: 3, cloud: 6 };

function policy(): DimecDc {
  const centroids = new Centroids(Float64Array.from([0, 0, 10, 0, 0, 10]), Float64Array.from([1, 1, 1]));
  return new DimecDc(DEPTHS, centroids, true);
}

function learn(keeper: Keeper, own: DimecDc, times: number): void {
  for (let n = 0; n < times; n += 1) {
    own.learn({ steps: [step('edge', 3)], readings: [], embedding: Float32Array.from([2, 2]), unseen: NaN });
    keeper.learnt();
  }
}

test('what is learnt is kept over a restart, for this model and policy alone', async () => {
  const first = policy();
  const keeper = await Keeper.open(first, 'model a', DEFAULTS);
  learn(keeper, first, 3);
  await keeper.close();
  const again = policy();
  const second = await Keeper.open(again, 'model a', DEFAULTS);
  expect(second.status).toBe('kept');
  expect(second.updates).toBe(3);
  expect(again.learnt()).toEqual(first.learnt());
  await second.close();
  const other = policy();
  const third = await Keeper.open(other, 'model b', DEFAULTS);
  expect(third.updates).toBe(0);
  expect(other.learnt()).toEqual(policy().learnt());
  await third.close();
});

test('a snapshot is written without a close, after so many updates', async () => {
  const first = policy();
  const keeper = await Keeper.open(first, 'model c', { ...DEFAULTS, snapshotUpdates: 2, snapshotMs: 60_000 });
  learn(keeper, first, 5);
  await vi.waitFor(async () => {
    const again = await Keeper.open(policy(), 'model c', DEFAULTS);
    expect(again.updates).toBe(4);
  });
  await keeper.close();
});

test('where storage is denied it learns all the same', async () => {
  const own = policy();
  const open = vi.spyOn(indexedDB, 'open').mockImplementation(() => {
    throw new DOMException('denied', 'SecurityError');
  });
  const keeper = await Keeper.open(own, 'model d', DEFAULTS);
  learn(keeper, own, 1);
  expect(keeper.status).toBe('storage is denied');
  expect(keeper.updates).toBe(1);
  await keeper.close();
  open.mockRestore();
});

test('what was kept of another width is not taken', () => {
  const own = new DimecDc(DEPTHS, new Centroids(new Float64Array(9), Float64Array.from([1, 1, 1])), true);
  expect(() => own.resume(policy().learnt()!)).toThrow(/fit/);
});
