/** What `dimec web` says of the site: `site.json`. */
import * as v from 'valibot';
import { strings } from './strings.js';

const url = v.nullable(v.pipe(v.string(), v.maxLength(2_000)));
const short = v.pipe(v.string(), v.maxLength(300));
const Site = v.object({
  format: v.literal(1),
  title: v.pipe(v.string(), v.minLength(1), v.maxLength(80)),
  edge: url,
  cloud: url,
  examples: v.optional(v.pipe(v.array(v.union([short, v.tuple([short, short])])), v.maxLength(8)), []),
  points: v.optional(
    v.pipe(
      v.array(
        v.object({
          name: v.pipe(v.string(), v.maxLength(40)),
          folder: v.pipe(v.string(), v.regex(/^points\/[A-Za-z0-9][A-Za-z0-9._-]*$/)),
        }),
      ),
      v.maxLength(20),
    ),
    [],
  ),
});
export type Site = v.InferOutput<typeof Site>;

/** Fetch `site.json`; tiers' URLs are absolute then. */
export async function fetchSite(): Promise<Site> {
  let document: unknown;
  try {
    const response = await fetch('./site.json', { cache: 'no-cache' });
    document = await response.json();
  } catch {
    throw new Error(strings.noSite);
  }
  const found = v.safeParse(Site, document);
  if (!found.success) throw new Error(strings.noSite);
  const absolute = (each: string | null): string | null => (each === null ? null : new URL(each, location.href).href);
  return { ...found.output, edge: absolute(found.output.edge), cloud: absolute(found.output.cloud) };
}
