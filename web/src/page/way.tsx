/** The way that a text took: words, layers, edge, cloud. */
import type { About, Answer, Stop, Tier } from '../device/index.js';
import { TierIcon } from './icons.js';
import { milliseconds, percent, strings } from './strings.js';

/** How many layers of the device are drawn whether a text passed them or not. */
const MOST_LAYERS = 4;

interface Station {
  readonly key: string;
  readonly name: string;
  readonly tier: Tier;
  readonly stop: Stop | null;
  readonly answers: boolean;
  /** Whether the way leads here, or past it. */
  readonly reached?: boolean;
}

/** Return what a text may pass, in order, with what it did there. */
export function stationsOf(about: About, answer: Answer): Station[] {
  const visited = answer.way.flatMap((each) => (each.tier === 'mobile' ? [each.layer] : []));
  const held = about.layers.length > MOST_LAYERS ? about.layers.slice(-1) : about.layers;
  const local = [...new Set([0, ...held, ...visited])].sort((a, b) => a - b);
  const found: Station[] = local.map((layer) => ({
    key: `mobile ${layer}`,
    name: layer === 0 ? strings.words : strings.layer(layer),
    tier: 'mobile',
    stop: lastOf(answer, (each) => each.tier === 'mobile' && each.layer === layer),
    answers: answer.tier === 'mobile' && answer.layer === layer,
  }));
  for (const tier of ['edge', 'cloud'] as const)
    found.push({
      key: tier,
      name: strings[tier],
      tier,
      stop: lastOf(answer, (each) => each.tier === tier),
      answers: answer.tier === tier,
    });
  const end = found.findLastIndex((each) => each.stop !== null);
  return found.map((each, place) => ({ ...each, reached: place <= end }));
}

function lastOf(answer: Answer, fits: (stop: Stop) => boolean): Stop | null {
  return answer.way.filter(fits).at(-1) ?? null;
}

export function Way({ about, answer }: { about: About; answer: Answer }) {
  return (
    <ol class="way" aria-label={strings.way}>
      {stationsOf(about, answer).map(({ key, ...station }) => (
        <StationMark key={key} {...station} />
      ))}
    </ol>
  );
}

function StationMark({ name, tier, stop, answers, reached }: Omit<Station, 'key'>) {
  const state = answers ? 'answers' : !stop ? 'unused' : stop.confidence === null ? 'failed' : 'passed';
  return (
    <li class={`station ${state} ${tier} ${reached ? 'reached' : ''}`}>
      <span class="mark" aria-hidden="true">
        {tier !== 'mobile' || name === strings.words ? <TierIcon tier={tier} /> : name.replace(/\D+/, '')}
      </span>
      <span class="station-name">{name}</span>
      <span class="station-said" aria-hidden={!stop}>
        {stop ? (stop.confidence === null ? '✕' : percent(stop.confidence)) : '–'}
      </span>
      <span class="unseen">
        {answers
          ? strings.answeredHere
          : !stop
            ? strings.notAsked
            : stop.confidence === null
              ? strings.noAnswerHere
              : ''}
        {stop ? ` ${milliseconds(stop.ms)}` : ''}
      </span>
    </li>
  );
}
