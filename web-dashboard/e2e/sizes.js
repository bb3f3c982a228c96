// How large the built dashboard is.

import { readdirSync, readFileSync } from 'node:fs';
import { gzipSync } from 'node:zlib';

/** What the first visit loads, and what there is altogether; compressed as it travels to a browser without Brotli. */
export function sizesOf() {
  const dist = new URL('../dist/', import.meta.url);
  const assets = readdirSync(new URL('assets/', dist)).filter((name) => /\.(js|css)$/.test(name));
  const kib = (names) =>
    names.reduce(
      (sum, name) => sum + gzipSync(readFileSync(new URL(`assets/${name}`, dist)), { level: 9 }).length,
      0,
    ) / 1024;
  const html = readFileSync(new URL('index.html', dist), 'utf8');
  return { shell: kib(assets.filter((name) => html.includes(name))), all: kib(assets) };
}
