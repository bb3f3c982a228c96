// The difference of two texts by lines, as people read it: what goes, what comes, and a little around. Pure.

export interface Line {
  mark: ' ' | '+' | '-' | '…';
  text: string;
  /** It changes what runs, how many there are of it, or whose it is. */
  heavy?: boolean;
}

/** Longer texts are compared as a whole from the first differing line to the last: enough for a person, and bounded. */
const CELLS_MAX = 4_000_000;

/** All lines of both, marked. */
export function lines(before: string, after: string): Line[] {
  const [a, b] = [before.split('\n'), after.split('\n')];
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head++;
  let tail = 0;
  while (
    tail < a.length - head &&
    tail < b.length - head &&
    a[a.length - 1 - tail] === b[b.length - 1 - tail]
  )
    tail++;
  const middle = between(a.slice(head, a.length - tail), b.slice(head, b.length - tail));
  const same = (text: string): Line => ({ mark: ' ', text });
  return [...a.slice(0, head).map(same), ...middle, ...a.slice(a.length - tail).map(same)];
}

/** The longest common subsequence by dynamic programming: texts are short once the same ends are off. */
function between(a: string[], b: string[]): Line[] {
  const gone = a.map((text): Line => ({ mark: '-', text }));
  const came = b.map((text): Line => ({ mark: '+', text }));
  if (a.length * b.length > CELLS_MAX) return [...gone, ...came];
  const width = b.length + 1;
  const best = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      best[i * width + j] =
        a[i] === b[j]
          ? best[(i + 1) * width + j + 1]! + 1
          : Math.max(best[(i + 1) * width + j]!, best[i * width + j + 1]!);
    }
  }
  const out: Line[] = [];
  let [i, j] = [0, 0];
  while (i < a.length && j < b.length) {
    if (a[i] === b[j]) {
      out.push({ mark: ' ', text: a[i]! });
      i++;
      j++;
    } else if (best[(i + 1) * width + j]! >= best[i * width + j + 1]!) out.push(gone[i++]!);
    else out.push(came[j++]!);
  }
  return [...out, ...gone.slice(i), ...came.slice(j)];
}

const HEAVY = new Set(['image', 'replicas', 'limits', 'requests', 'selector']);

/** Marks the changed lines of YAML that are in a field whose change is felt. */
export function weigh(all: Line[]): Line[] {
  const path: { column: number; key: string }[] = [];
  return all.map((line) => {
    const [, before = '', key] = /^([\s-]*)([\w./-]+):(?:\s|$)/.exec(line.text) ?? [];
    const column = key ? before.length : line.text.search(/\S/);
    while (path.length > 0 && path.at(-1)!.column >= column) path.pop();
    if (key) path.push({ column, key });
    const heavy = line.mark !== ' ' && path.some(({ key }) => HEAVY.has(key));
    return heavy ? { ...line, heavy } : line;
  });
}

/** Only what differs, with some lines around. */
export function hunks(all: Line[], around = 3): Line[] {
  const near = all.map((_, at) =>
    all.slice(Math.max(0, at - around), at + around + 1).some((line) => line.mark !== ' '),
  );
  const out: Line[] = [];
  all.forEach((line, at) => {
    if (near[at]) out.push(line);
    else if (out.at(-1)?.mark !== '…') out.push({ mark: '…', text: '' });
  });
  return out.some((line) => line.mark !== '…') ? out : [];
}
