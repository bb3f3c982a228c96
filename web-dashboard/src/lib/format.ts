// Numbers, times and names as people read them. Pure.

/** How something is, as the server tells it. */
export type Health = 'bad' | 'warn' | 'good' | 'idle';

/** `42s`, `3m`, `5h`, `2d`: a span as kubectl shortens it. */
export function span(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  if (Number.isNaN(whole)) return '';
  if (whole < 120) return `${whole}s`;
  if (whole < 7200) return `${Math.floor(whole / 60)}m`;
  if (whole < 172800) return `${Math.floor(whole / 3600)}h`;
  if (whole < 63072000) return `${Math.floor(whole / 86400)}d`;
  return `${Math.floor(whole / 31536000)}y`;
}

/** The time from `at` (seconds since 1970) to `now` (milliseconds). */
export function age(at: number, now: number): string {
  return at > 0 ? span(now / 1000 - at) : '';
}

/** A time of the wire as seconds since 1970; 0 if there is none. */
export function seconds(time: string | undefined | null): number {
  const parsed = time ? Date.parse(time) / 1000 : 0;
  return Number.isNaN(parsed) ? 0 : parsed;
}

/** A duration of a phase: `35 µs`, `0.4 ms`, `38 ms`, `2.1 s`, `4m`. */
export function duration(ms: number): string {
  if (ms > 0 && ms < 0.1) return `${Math.max(1, Math.round(ms * 1000))} µs`;
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 120_000) return `${(ms / 1000).toFixed(1)} s`;
  return span(ms / 1000);
}

/** A moment in the reader's own time zone, to the second. */
export function moment(at: number): string {
  if (at <= 0) return '';
  const date = new Date(at * 1000);
  const two = (number: number) => String(number).padStart(2, '0');
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

/** Shortens a generated name in its middle, where it says least. */
export function shorten(name: string, length = 40): string {
  if (name.length <= length) return name;
  const tail = Math.floor((length - 1) / 3);
  return `${name.slice(0, length - 1 - tail)}…${name.slice(-tail)}`;
}

/** A long name's beginning and its end, which tells a generated one from the others; what is between may be cut. */
export function halves(name: string): [begin: string, end: string] {
  const at = name.length > 16 ? name.length - 6 : name.length;
  return [name.slice(0, at), name.slice(at)];
}

const SUFFIXES: Record<string, number> = {
  n: 1e-9,
  u: 1e-6,
  m: 1e-3,
  '': 1,
  k: 1e3,
  M: 1e6,
  G: 1e9,
  T: 1e12,
  P: 1e15,
  E: 1e18,
  Ki: 2 ** 10,
  Mi: 2 ** 20,
  Gi: 2 ** 30,
  Ti: 2 ** 40,
  Pi: 2 ** 50,
  Ei: 2 ** 60,
};

/** A Kubernetes quantity as a number, or null where it is none. */
export function quantity(text: string | number | undefined): number | null {
  const found = /^([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)$/.exec(String(text ?? ''));
  const factor = found ? SUFFIXES[found[2] ?? ''] : undefined;
  return found && factor !== undefined ? Number(found[1]) * factor : null;
}

/** Bytes in the unit in which they are short: `12 MiB`. */
export function bytes(count: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = count;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${value >= 100 || Number.isInteger(value) ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** Processor time: `250m`, `1.5`. */
export function cores(count: number): string {
  if (count === 0) return '0';
  return count < 1 ? `${Math.max(1, Math.round(count * 1000))}m` : String(Math.round(count * 100) / 100);
}

/** `1 Pod`, `3 Pods`. */
export function counted(count: number, one: string, many = `${one}s`): string {
  return `${count.toLocaleString('en')} ${count === 1 ? one : many}`;
}
