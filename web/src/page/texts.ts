/** The texts of a file: CSV or TSV by its columns, anything else by its lines. */
import Papa from 'papaparse';
import type { Text } from '../device/index.js';
import { strings } from './strings.js';

export const MOST_BYTES = 100_000_000;

/** The columns that Python recognises too. */
const PAIR_COLUMNS = [
  ['sentence1', 'sentence2'],
  ['sentence_a', 'sentence_b'],
  ['question1', 'question2'],
  ['premise', 'hypothesis'],
  ['question', 'sentence'],
  ['query', 'passage'],
  ['#1 string', '#2 string'],
  ['text1', 'text2'],
  ['text_a', 'text_b'],
  ['text', 'text_pair'],
] as const;
const TEXT_COLUMNS = [
  'sentence',
  'text',
  'review',
  'question',
  'query',
  'comment',
  'content',
  'document',
  'message',
  'tweet',
  'utterance',
  'sentence1',
  'premise',
] as const;
const LABEL_COLUMNS = ['label', 'labels', 'class', 'target', 'category', 'sentiment', 'intent'];

/** A file as rows of cells. */
export interface Table {
  readonly name: string;
  /** All rows, that of the names included. */
  readonly cells: readonly (readonly string[])[];
  /** Whether the first row names the columns; null where there are none. */
  readonly headed: boolean | null;
  /** The places of the columns that are taken, chosen by their names at first. */
  readonly chosen: readonly number[];
}

/** Return the names of a table's columns, or their numbers. */
export function columnsOf({ cells, headed }: Table): readonly string[] {
  const first = cells[0] ?? [];
  return headed ? first : first.map((_, place) => `${place + 1}`);
}

/** Return the rows of a table that hold texts. */
export function rowsOf({ cells, headed }: Table): readonly (readonly string[])[] {
  return headed ? cells.slice(1) : cells;
}

/** Read a file; an error says what is wrong with it. */
export async function readTable(file: File, pairs: boolean): Promise<Table> {
  if (file.size > MOST_BYTES) throw new Error(strings.largeFile(file.name));
  const text = (await file.text()).replace(/^\ufeff/, '');
  const table = /\.(csv|tsv)$/i.test(file.name) ? delimited(file.name, text, pairs) : lines(file.name, text, pairs);
  if (rowsOf(table).length === 0) throw new Error(strings.emptyFile(file.name));
  return table;
}

function lines(name: string, text: string, pairs: boolean): Table {
  const rows: string[][] = [];
  text.split(/\r\n|\n|\r/).forEach((line, index) => {
    if (line.trim() === '') return;
    const parts = pairs ? line.split('\t') : [line];
    if (pairs && parts.length !== 2) throw new Error(strings.badPair(name, index + 1));
    rows.push(parts);
  });
  return { name, cells: rows, headed: null, chosen: pairs ? [0, 1] : [0] };
}

function delimited(name: string, text: string, pairs: boolean): Table {
  const options = /\.tsv$/i.test(name) ? { delimiter: '\t', quoteChar: '\u0000' } : {};
  const parsed = Papa.parse<string[]>(text, { ...options, skipEmptyLines: 'greedy' });
  const fault = parsed.errors.find((each) => each.type !== 'Delimiter');
  if (fault) throw new Error(strings.unreadableFile(name, `row ${(fault.row ?? 0) + 1}: ${fault.message}`));
  const [first = []] = parsed.data;
  const names = first.map((each) => each.trim().toLowerCase());
  const known = new Set<string>([...TEXT_COLUMNS, ...LABEL_COLUMNS, ...PAIR_COLUMNS.flat()]);
  const headed = names.some((each) => known.has(each));
  const ways = pairs ? PAIR_COLUMNS : TEXT_COLUMNS.map((each) => [each]);
  const way = ways.find((each) => each.every((column) => names.includes(column)));
  const places =
    (headed && way?.map((each) => names.indexOf(each))) || (pairs ? [0, Math.min(1, first.length - 1)] : [0]);
  return { name, cells: parsed.data, headed, chosen: places };
}

/** Return the texts of a table by its chosen columns. */
export function textsOf(table: Table): Text[] {
  return rowsOf(table).map((row) => {
    const [first = '', second] = table.chosen.map((place) => row[place] ?? '');
    return second === undefined ? first : ([first, second] as const);
  });
}
