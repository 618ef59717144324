/** Every word that the page shows, in one place. */
import type { Tier } from '../device/index.js';

const number = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });
const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const cost = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });

/** A share in percent, never rounded to all or nothing. */
export function percent(share: number): string {
  if (share > 0.995 && share < 1) return '> 99 %';
  return share > 0 && share < 0.005 ? '< 1 %' : `${whole.format(100 * share)} %`;
}

export const lambda = (value: number): string => `${cost.format(value)} λ`;
export const count = (value: number): string => whole.format(value);

export function milliseconds(ms: number): string {
  return ms < 1
    ? '< 1 ms'
    : ms < 100
      ? `${number.format(ms)} ms`
      : ms < 10_000
        ? `${whole.format(ms)} ms`
        : `${number.format(ms / 1_000)} s`;
}

export function bytes(value: number): string {
  if (value < 1_000) return `${whole.format(value)} B`;
  return value < 1_000_000 ? `${number.format(value / 1_000)} kB` : `${number.format(value / 1_000_000)} MB`;
}

export const TIER_NAMES: Readonly<Record<Tier, string>> = { mobile: 'This device', edge: 'Edge', cloud: 'Cloud' };

export const strings = {
  subtitle: 'Classified on this device where it is sure, on larger tiers where it is not.',
  online: 'Online',
  offline: 'Offline',
  offlineHint: 'Offline: every text is answered on this device.',
  readyOffline: 'Works offline',
  install: 'Install app',

  loading: 'Loading the model',
  loadingOf: (done: number, total: number) => `${bytes(done)} of ${bytes(total)}`,
  starting: 'Starting',
  failedTitle: 'This page cannot start',
  reload: 'Reload',
  noSite: 'site.json could not be read: write the site again with “dimec web”.',

  text: 'Text',
  firstText: 'First text',
  secondText: 'Second text',
  placeholder: 'Type or paste a text',
  classify: 'Classify',
  shortcut: 'Ctrl + Enter',
  examples: 'Try one of these',
  file: 'Open a file',
  fileHint: 'CSV, TSV, or one text a line; it stays on this device but for the texts that a tier is asked about.',
  fileHintPairs:
    'CSV or TSV with two columns, or two texts a line with a tab between; only what a tier is asked about leaves this device.',
  column: 'Column of the texts',
  secondColumn: 'Column of the second texts',
  headed: 'The first line names the columns',
  start: (n: number) => `Classify ${count(n)} texts`,
  dismiss: 'Close the file',
  stop: 'Stop',
  close: 'Close',
  stopped: (n: number, total: number) => `Stopped after ${count(n)} of ${count(total)} texts`,
  finished: (n: number) => `${count(n)} texts classified`,
  progress: (n: number, total: number) => `${count(n)} of ${count(total)} texts`,
  perSecond: (rate: number) => `${number.format(rate)} a second`,
  download: 'Download answers (CSV)',
  emptyFile: (name: string) => `${name} holds no text.`,
  largeFile: (name: string) => `${name} has more than 100 MB: use “dimec classify” for it.`,
  unreadableFile: (name: string, why: string) => `${name} could not be read (${why}).`,
  badPair: (name: string, line: number) => `${name}, line ${line}: two texts with a tab between are needed.`,

  dial: 'Operating point',
  own: 'as exported',

  answers: 'Answers',
  noAnswers: 'Answers appear here, with the way each text took.',
  onlyLatest: (shown: number, total: number) =>
    `The latest ${count(shown)} of ${count(total)}; the download holds all.`,
  clear: 'Clear',
  by: (tier: Tier) => (tier === 'mobile' ? 'on this device' : `by the ${tier}`),
  tokens: (n: number, cut: boolean) => `${count(n)} tokens${cut ? ', cut' : ''}`,
  cost: 'Cost',
  time: 'Time',
  announced: (label: string, share: number, tier: Tier, ms: number) =>
    `${label}, ${percent(share)}, answered ${strings.by(tier)} in ${milliseconds(ms)}.`,
  brief: (n: number, saved: number) =>
    `${count(n)} ${n === 1 ? 'text' : 'texts'}, ${percent(saved)} of all-cloud’s cost saved`,
  otherClasses: (n: number) => `and ${count(n)} more classes`,

  way: 'The way it took',
  words: 'Words',
  layer: (layer: number) => `Layer ${layer}`,
  edge: 'Edge',
  cloud: 'Cloud',
  answeredHere: 'answered here',
  noAnswerHere: 'gave no answer',
  notAsked: 'not needed',

  totals: 'So far',
  noTotals: 'Tier shares, cost and traffic appear with the first answer.',
  shares: 'Share of texts by the tier that answered',
  texts: 'Texts',
  saved: 'Saved against all-cloud',
  meanCost: 'Mean cost',
  medianTime: 'Median time',
  sent: 'Sent to tiers',
  received: 'Received',
  degraded: 'Answered by a stand-in',

  tiers: 'Tiers',
  tierNone: 'none; the nearest tier stands in',
  tierUnasked: 'not asked yet',
  tierWell: 'answers',
  here: 'this browser',
  token: 'Token',
  tokenHint: 'Asked for by the tiers’ servers. It stays in memory until this page is closed.',
  tokenSet: 'A token is set.',
  tokenNone: 'No token is set.',
  tokenWanted: (tier: Tier) => `The ${tier} tier wants a token.`,
  useToken: 'Use token',
  removeToken: 'Remove',

  about: 'About this model',
  policy: 'Policy',
  model: 'Model',
  weights: 'Weights',
  int8: '8-bit integers',
  float: '32-bit floats',
  engine: 'Engine',
  engineOf: (threads: number) => `WebAssembly, ${threads === 1 ? 'one thread' : `${threads} threads`}`,
  learning: 'Learning',
  keeping: {
    'nothing to keep': 'learns nothing',
    kept: 'kept in this browser',
    'another tab keeps it': 'not kept: another tab keeps it',
    'storage is denied': 'not kept: this browser denies storage',
  },
  files: 'Files',
  filesKept: 'kept in this browser, checked against the manifest',
  filesNotKept: 'checked against the manifest; not kept, since this browser denies storage',
  footer: 'dimec: one encoder, cut across device, edge and cloud.',
} as const;
