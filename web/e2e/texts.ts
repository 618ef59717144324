/** Texts to classify: of SST-2 where DIMEC_DATA names the data, else built-in ones. */
import { execFileSync } from 'node:child_process';
import { DATA, PYTHON } from './tiers.js';

const SST2 = `
import json, sys
import pyarrow.parquet as pq
table = pq.read_table(sys.argv[1], columns=["sentence1"])
rows = table.column("sentence1").to_pylist()
print(json.dumps([text.strip() for text in rows[-4000:] if text.strip()][: int(sys.argv[2])]))
`;
const REVIEWS = `
import json, sys
from dimec.data.builtin import reviews
print(json.dumps(reviews(int(sys.argv[1]), seed=7).first))
`;

/** Return so many texts. */
export function texts(n: number): string[] {
  const [script, ...given] = DATA ? [SST2, `${DATA}/glue/sst2/train.parquet`, String(n)] : [REVIEWS, String(n)];
  return JSON.parse(execFileSync(PYTHON, ['-c', script, ...given], { maxBuffer: 1e9 }).toString()) as string[];
}
