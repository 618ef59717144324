import { expect, test } from 'vitest';
import { columnsOf, readTable, textsOf } from '../src/page/texts.js';

const file = (name: string, text: string): File => new File([text], name);

test('lines are texts, empty ones left out', async () => {
  const table = await readTable(file('a.txt', '\ufeffa gripping film\r\n\r\ntwo hours, too long\n'), false);
  expect(textsOf(table)).toEqual(['a gripping film', 'two hours, too long']);
});

test('a CSV is read by a column that is known', async () => {
  const table = await readTable(file('a.csv', 'label,Sentence\n1,"a ""gripping"" film,\nand long"\n0,dull\n'), false);
  expect(textsOf(table)).toEqual(['a "gripping" film,\nand long', 'dull']);
  expect(columnsOf(table)).toEqual(['label', 'Sentence']);
});

test('another column may be chosen, and a file without a header keeps its first row', async () => {
  const table = await readTable(file('a.csv', '7,good film\n8,bad film\n'), false);
  expect(textsOf({ ...table, chosen: [1] })).toEqual(['good film', 'bad film']);
  expect(textsOf({ ...table, chosen: [1], headed: true })).toEqual(['bad film']);
});

test('pairs come from two columns, or from lines with a tab', async () => {
  const csv = await readTable(file('a.csv', 'id,question1,question2\n1,why?,how?\n'), true);
  expect(textsOf(csv)).toEqual([['why?', 'how?']]);
  const lines = await readTable(file('a.txt', 'why?\thow?\n'), true);
  expect(textsOf(lines)).toEqual([['why?', 'how?']]);
  await expect(readTable(file('a.txt', 'why?\thow?\nwhy?\n'), true)).rejects.toThrow(/line 2/);
});

test('quotes mean nothing in a TSV', async () => {
  const table = await readTable(file('a.tsv', 'sentence\tlabel\n"good\t1\n'), false);
  expect(textsOf(table)).toEqual(['"good']);
});

test.each([
  ['a.csv', ''],
  ['a.txt', ' \n\n'],
  ['a.csv', 'sentence\n'],
  ['a.csv', 'sentence\n"open'],
])('%s with %j is refused', async (name, text) => {
  await expect(readTable(file(name, text), false)).rejects.toThrow(name);
});
