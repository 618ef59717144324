/** Token ids of a text: those that an encoder reads, and all of them, which exit zero reads. */
import { Tokenizer } from '@huggingface/tokenizers';
import { BundleError, messageOf } from './errors.js';

export type Text = string | readonly [string, string];
export type CutKind = 'head' | 'head-tail';

export interface Encoded {
  readonly ids: number[];
  readonly types: number[];
  readonly whole: number[];
}

/** How many tokens of a text are read before the first layer at most. */
const MOST_TOKENS = 16_384;

export class TextTokenizer {
  private readonly tokenizer: Tokenizer;

  constructor(
    file: ArrayBuffer,
    private readonly maxLength: number,
    private readonly cut: CutKind,
  ) {
    try {
      this.tokenizer = new Tokenizer(JSON.parse(new TextDecoder().decode(file)) as object, {});
    } catch (error) {
      throw new BundleError(`tokenizer.json cannot be read (${messageOf(error)}): export the bundle again`);
    }
  }

  encode(text: Text): Encoded {
    const [first, second] = typeof text === 'string' ? [text, null] : text;
    const all = this.encodeWhole(first, second);
    if (all.ids.length <= this.maxLength) return { ...all, whole: all.ids };
    const sequences = this.sequencesOf(all.ids, first, second);
    const kept = keptPlaces(sequences, this.maxLength, this.cut);
    const most = Math.max(MOST_TOKENS, this.maxLength);
    return {
      ids: kept.map((place) => all.ids[place]!),
      types: kept.map((place) => all.types[place]!),
      whole: all.ids.length <= most ? all.ids : keptPlaces(sequences, most, 'head').map((place) => all.ids[place]!),
    };
  }

  private encodeWhole(first: string, second: string | null): { ids: number[]; types: number[] } {
    if (second === '') {
      // The library takes an empty second text for none: another one stands in, and its tokens are taken out again.
      const { ids, types } = this.encodeWhole(first, 'a');
      const kept = this.sequencesOf(ids, first, 'a').map((each) => each !== 1);
      return { ids: ids.filter((_, place) => kept[place]), types: types.filter((_, place) => kept[place]) };
    }
    const found = this.tokenizer.encode(first, { text_pair: second, return_token_type_ids: true });
    return { ids: found.ids, types: found.token_type_ids };
  }

  /** Return of each token which text it is of, -1 for those that stand around the texts. */
  private sequencesOf(ids: readonly number[], first: string, second: string | null): number[] {
    const found = new Array<number>(ids.length).fill(-1);
    let from = 0;
    [first, second].forEach((part, which) => {
      if (part === null) return;
      const own = this.tokenizer.encode(part, { add_special_tokens: false }).ids;
      while (from + own.length < ids.length && !own.every((id, place) => ids[from + place] === id)) from += 1;
      found.fill(which, from, from + own.length);
      from += own.length;
    });
    return found;
  }
}

/** Return the places of the tokens that an encoder reads; a pair loses from its longer text first. */
export function keptPlaces(sequences: readonly number[], maxLength: number, cut: CutKind): number[] {
  const places = [0, 1].map((which) => sequences.flatMap((each, place) => (each === which ? [place] : [])));
  const [nFirst, nSecond] = [places[0]!.length, places[1]!.length];
  const room = maxLength - (sequences.length - nFirst - nSecond);
  if (nFirst + nSecond <= room) return sequences.map((_, place) => place);
  const shorter = Math.min(nFirst, nSecond);
  const longer = 2 * shorter <= room ? room - shorter : room - Math.floor(room / 2);
  const fits = nFirst > nSecond ? [longer, room - longer] : [room - longer, longer];
  const kept = sequences.map((each) => each < 0);
  places.forEach((own, which) => {
    const fit = fits[which]!;
    const tail = cut === 'head-tail' && nSecond === 0 ? Math.floor(fit / 4) : 0;
    own.forEach((place, index) => {
      kept[place] = index < fit - tail || index >= own.length - tail;
    });
  });
  return kept.flatMap((each, place) => (each ? [place] : []));
}
