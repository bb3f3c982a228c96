// Lines of logs of several Pods, merged by time in a ring. Pure but for `follow`, which reads the streams.

import { Failure, pathOf, request } from './api';

export interface LogLine {
  /** As the server stamped it; sorts as text. */
  time: string;
  text: string;
  /** Which of the sources it is from. */
  source: number;
}
export interface Source {
  namespace: string;
  pod: string;
  container?: string;
}

/** Lines that are kept: more than anybody scrolls through. */
export const LINES_MAX = 100_000;

/** What somebody has chosen of a log. */
export interface Chosen {
  /** Empty: the first one. */
  container: string;
  previous: boolean;
  /** Seconds back from now; 0: the last lines. */
  since: number;
  times: boolean;
}

/** The line that prints the same: `kubectl -n shop logs --previous web-1 -c app`, where all of it is `logs -f web-1`. */
export function kubectlOf(all: string, { container, previous, since, times }: Chosen): string {
  return [
    previous ? all.replace(' logs -f ', ' logs --previous ') : all,
    container && `-c ${container}`,
    since > 0 && `--since=${since}s`,
    times && '--timestamps',
  ]
    .filter(Boolean)
    .join(' ');
}

/** `2026-01-01T12:00:00.1Z text` → its parts. */
export function split(line: string): { time: string; text: string } {
  const space = line.indexOf(' ');
  const time = space > 0 ? line.slice(0, space) : '';
  return /^\d{4}-\d\d-\d\dT/.test(time) ? { time, text: line.slice(space + 1) } : { time: '', text: line };
}

/** Puts new lines, in order among themselves, into those that are there; the oldest fall out. */
export function merge(held: LogLine[], fresh: LogLine[]): LogLine[] {
  if (fresh.length === 0) return held;
  const sorted = [...fresh].sort((a, b) => order(a, b));
  let all: LogLine[];
  if (held.length === 0 || order(held[held.length - 1]!, sorted[0]!) <= 0) all = [...held, ...sorted];
  else all = [...held, ...sorted].sort((a, b) => order(a, b));
  return all.length > LINES_MAX ? all.slice(all.length - LINES_MAX) : all;
}

function order(a: LogLine, b: LogLine): number {
  return a.time < b.time ? -1 : a.time > b.time ? 1 : 0;
}

// eslint-disable-next-line no-control-regex
const ESCAPES = /\u001b\[[0-9;?]*[ -/]*[@-~]/g;

/** Text without the codes that colour terminals. */
export function plain(text: string): string {
  return text.includes('\u001b') ? text.replace(ESCAPES, '') : text;
}

/** Lines that hold all words; `!word` must not be in them. */
export function grep(lines: LogLine[], query: string): LogLine[] {
  const words = query
    .toLowerCase()
    .split(/\s+/)
    .filter((word) => word !== '' && word !== '!');
  if (words.length === 0) return lines;
  return lines.filter(({ text }) => {
    const inside = text.toLowerCase();
    return words.every((word) =>
      word.startsWith('!') ? !inside.includes(word.slice(1)) : inside.includes(word),
    );
  });
}

/** How severe a line says it is: of JSON by its level, of text by a word near its beginning. */
export function severity(text: string): 'bad' | 'warn' | '' {
  const level =
    /"(?:level|severity|lvl)"\s*:\s*"(\w+)"/i.exec(text)?.[1] ??
    /\b(ERROR|FATAL|PANIC|CRITICAL|WARN(?:ING)?)\b/.exec(text.slice(0, 80))?.[1] ??
    '';
  if (/^(error|fatal|panic|critical)$/i.test(level) || /panicked at/.test(text)) return 'bad';
  return /^warn(ing)?$/i.test(level) ? 'warn' : '';
}

/** The fields of a line that is a JSON object, as text; null of any other. */
export function fieldsOf(text: string): Map<string, string> | null {
  if (!text.startsWith('{')) return null;
  try {
    const entries = Object.entries(JSON.parse(text) as Record<string, unknown>);
    return new Map(
      entries.map(([key, value]) => [key, typeof value === 'string' ? value : JSON.stringify(value)]),
    );
  } catch {
    return null;
  }
}

/** Columns that fit beside each other. */
const COLUMNS_MAX = 6;
/** Lines whose fields are looked at. */
const LOOKED_MAX = 300;
/** The server has stamped each line already. */
const TIMES = new Set(['time', 'ts', 'timestamp', '@timestamp']);
/** What stands first, in this order. */
const FIRST = ['level', 'severity', 'lvl', 'message', 'msg', 'target', 'error'];

/** The fields that the newest lines have, the usual ones first, then the most frequent; none where lines are text. */
export function columnsOf(lines: LogLine[]): string[] {
  const counts = new Map<string, number>();
  for (const { text } of lines.slice(-LOOKED_MAX))
    for (const key of fieldsOf(text)?.keys() ?? []) counts.set(key, (counts.get(key) ?? 0) + 1);
  const rank = (key: string) => (FIRST.includes(key) ? FIRST.indexOf(key) : FIRST.length);
  return [...counts]
    .filter(([key]) => !TIMES.has(key))
    .sort(([a, times], [b, others]) => rank(a) - rank(b) || others - times || a.localeCompare(b))
    .slice(0, COLUMNS_MAX)
    .map(([key]) => key);
}

/** The place of the first line from a time on: where a link to a line leads; -1 if there is none. */
export function placeOf(lines: LogLine[], time: string): number {
  return lines.findIndex((line) => line.time >= time);
}

/** Whether an error is worth another try: the server is away, or the container has not begun yet. */
export function passes(error: unknown): boolean {
  if (!(error instanceof Failure)) return true;
  return error.code === 0 || error.code === 429 || error.code >= 500 || error.message.includes('is waiting to start');
}

/** The container that is meant where a Pod has several and none was named: its first. */
export function firstOf(error: unknown): string {
  return (error instanceof Failure && /must be specified .*choose one of: \[([^\s\]]+)/.exec(error.message)?.[1]) || '';
}

/** Follows one container's log; `take` gets lines in batches. Ends with the signal, or with the log. */
export async function follow(
  source: Source,
  options: { previous: boolean; tail: number; follow: boolean; sinceSeconds?: number; after?: string },
  take: (lines: { time: string; text: string }[]) => void,
  signal: AbortSignal,
): Promise<void> {
  const path = pathOf({
    group: '',
    version: 'v1',
    resource: 'pods',
    namespace: source.namespace,
    name: source.pod,
    part: 'log',
  });
  const query: Record<string, string> = { timestamps: 'true' };
  // Whole seconds: what one has already comes once more, and is known by its time.
  if (options.after) query.sinceTime = `${options.after.slice(0, 19)}Z`;
  else if (options.sinceSeconds) query.sinceSeconds = String(options.sinceSeconds);
  else query.tailLines = String(options.tail);
  if (source.container) query.container = source.container;
  if (options.previous) query.previous = 'true';
  else if (options.follow) query.follow = 'true';
  const response = await request(path, { query, accept: '*/*', signal });
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  while (reader) {
    const { done, value } = await reader.read();
    const parts = (rest + (value ?? '')).split('\n');
    rest = parts.pop() ?? '';
    if (done && rest !== '') parts.push(rest);
    if (parts.length > 0) take(parts.map(split));
    if (done) return;
  }
}
