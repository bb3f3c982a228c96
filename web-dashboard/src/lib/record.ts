// What workers have recorded of the requests of some Pods, put together. Pure but for `fetchRecord`.

import { call } from './api';
import { duration } from './format';
import type { Row } from './stream';

/** As `/ui/record` tells it of one container. */
export interface Told {
  container: string;
  restart: number;
  guest: 'handler' | 'command';
  inFlight: number;
  record: Kept;
}
interface Kept {
  boundsUs: number[];
  wait: number[];
  instantiate: number[];
  answer: number[];
  minutes: Minute[];
  seen: Seen[];
  /** By who sent them, since the container began. */
  edges: Edge[];
}
export interface Edge {
  /** The address of a Pod; `peer`, a Pod of another worker; `outside`; `others`. */
  from: string;
  requests: number;
  failed: number;
  busyUs: number;
  /** How long the heads of the answers took, in buckets. */
  answered: number[];
}
export interface Minute {
  /** Minutes since 1970. */
  at: number;
  requests: number;
  failed: number;
  wakes: number;
  peak: number;
  busyUs: number;
  answered: number[];
}
export interface Seen {
  atMs: number;
  method: string;
  path: string;
  /** 0: no answer. */
  status: number;
  why: string | null;
  placedUs: number | null;
  instantiatedUs: number | null;
  answeredUs: number | null;
  endedUs: number;
  cpuUs: number;
  memoryBytes: number | null;
  restedMs: number | null;
}
/** One request, and whose it was. */
export interface Request extends Seen {
  pod: string;
  container: string;
}
/** What tells a request apart from all others, also when the records are read again. */
export function keyOf({ pod, container, atMs, endedUs, path, cpuUs }: Request): string {
  return [pod, container, atMs, endedUs, path, cpuUs].join(' ');
}
export interface PodRecord {
  pod: string;
  node: string;
  containers: Told[];
}

/** The steps of a request, in order. */
export const STEPS = ['wait', 'instantiate', 'answer'] as const;
export type Step = (typeof STEPS)[number];
export const ABOUT: Record<Step, string> = {
  wait: 'Waiting for a place',
  instantiate: 'Making the instance',
  answer: 'The guest, to the first byte',
};

/** The requests of several Pods as those of one. */
export interface Merged {
  boundsUs: number[];
  steps: Record<Step, number[]>;
  minutes: Minute[];
  requests: Request[];
  inFlight: number;
}

/** Whether a Pod runs, so that its worker has something to tell of it. */
export function runs(row: Row): boolean {
  return row.state?.[0] === 'good' || row.state?.[1] === 'Idle';
}

export async function fetchRecord(namespace: string, pod: string): Promise<PodRecord> {
  const told = await call<{ node: string; containers: Told[] }>('/ui/record', {
    query: { namespace, name: pod },
  });
  return { pod, ...told };
}

/** Buckets together. */
export function add(sum: number[], more: number[]): number[] {
  return Array.from(
    { length: Math.max(sum.length, more.length) },
    (_, at) => (sum[at] ?? 0) + (more[at] ?? 0),
  );
}

export function merged(records: PodRecord[]): Merged {
  const out: Merged = {
    boundsUs: [],
    steps: { wait: [], instantiate: [], answer: [] },
    minutes: [],
    requests: [],
    inFlight: 0,
  };
  const minutes = new Map<number, Minute>();
  for (const { pod, containers } of records) {
    for (const { container, record, inFlight } of containers) {
      out.boundsUs = record.boundsUs;
      out.inFlight += inFlight;
      for (const step of STEPS) out.steps[step] = add(out.steps[step], record[step]);
      for (const minute of record.minutes) minutes.set(minute.at, both(minutes.get(minute.at), minute));
      out.requests.push(...record.seen.map((seen) => ({ ...seen, pod, container })));
    }
  }
  out.minutes = [...minutes.values()].sort((a, b) => a.at - b.at);
  out.requests.sort((a, b) => b.atMs - a.atMs);
  return out;
}

function both(one: Minute | undefined, other: Minute): Minute {
  if (!one) return other;
  return {
    at: one.at,
    requests: one.requests + other.requests,
    failed: one.failed + other.failed,
    wakes: one.wakes + other.wakes,
    peak: one.peak + other.peak,
    busyUs: one.busyUs + other.busyUs,
    answered: add(one.answered, other.answered),
  };
}

/** The time below which a share of what was counted lies, in microseconds; null where nothing was. */
export function quantile(boundsUs: number[], counts: number[], share: number): number | null {
  const all = counts.reduce((sum, count) => sum + count, 0);
  if (all === 0) return null;
  let rest = share * all;
  for (const [at, count] of counts.entries()) {
    if (count > 0 && rest <= count) {
      const from = at === 0 ? 0 : boundsUs[at - 1]!;
      const to = boundsUs[at] ?? from * 2;
      return from + ((to - from) * rest) / count;
    }
    rest -= count;
  }
  return boundsUs.at(-1) ?? null;
}

/** The buckets that are worth drawing: from the first to the last that anything lies in, one more on each side. */
export function drawnBuckets(...all: number[][]): { from: number; to: number } {
  const used = all.flatMap((counts) => counts.flatMap((count, at) => (count > 0 ? [at] : [])));
  if (used.length === 0) return { from: 0, to: 0 };
  const length = Math.max(...all.map((counts) => counts.length));
  return { from: Math.max(0, Math.min(...used) - 1), to: Math.min(length, Math.max(...used) + 2) };
}

/** One cell of the heat map: a span of time, in seconds since 1970, and a bucket. */
export interface Cell {
  begin: number;
  end: number;
  bucket: number;
}

/** The requests that lie in a cell, as far as they were kept in detail. */
export function inCell(requests: Request[], boundsUs: number[], { begin, end, bucket }: Cell): Request[] {
  const [low, high] = [bucket === 0 ? 0 : boundsUs[bucket - 1]!, boundsUs[bucket] ?? Infinity];
  return requests.filter(
    ({ atMs, answeredUs }) =>
      atMs >= begin * 1000 && atMs < end * 1000 && answeredUs !== null && answeredUs >= low && answeredUs < high,
  );
}

/** A span of time in columns: what was answered in each, bucket by bucket. */
export function heat(minutes: Minute[], from: number, to: number, columns: number): number[][] {
  const out: number[][] = Array.from({ length: columns }, () => []);
  for (const minute of minutes) {
    if (minute.at < from || minute.at >= to) continue;
    const column = Math.floor(((minute.at - from) * columns) / (to - from));
    out[column] = add(out[column]!, minute.answered);
  }
  return out;
}

/** Minute by minute from `from` to `to`, those without requests included. */
export interface Series {
  /** Seconds since 1970. */
  times: number[];
  rate: number[];
  failed: number[];
  instances: number[];
  peak: number[];
}
export function series(minutes: Minute[], from: number, to: number): Series {
  const known = new Map(minutes.map((minute) => [minute.at, minute]));
  const out: Series = { times: [], rate: [], failed: [], instances: [], peak: [] };
  for (let at = from; at <= to; at++) {
    const minute = known.get(at);
    out.times.push(at * 60);
    out.rate.push((minute?.requests ?? 0) / 60);
    out.failed.push((minute?.failed ?? 0) / 60);
    out.instances.push((minute?.busyUs ?? 0) / 60e6);
    out.peak.push(minute?.peak ?? 0);
  }
  return out;
}

/** A span of minutes in which requests came, or none did. */
export interface Span {
  from: number;
  to: number;
  busy: boolean;
  wakes: number;
}
/** The last hours as spans of work and rest; what was before `since` is not known and not told. */
export function strip(minutes: Minute[], since: number, now: number): Span[] {
  const out: Span[] = [];
  let next = since;
  for (const { at, wakes } of minutes) {
    if (at < since || at > now) continue;
    if (at > next) out.push({ from: next, to: at, busy: false, wakes: 0 });
    const last = out.at(-1);
    if (last?.busy && last.to === at) Object.assign(last, { to: at + 1, wakes: last.wakes + wakes });
    else out.push({ from: at, to: at + 1, busy: true, wakes });
    next = at + 1;
  }
  if (next <= now) out.push({ from: next, to: now + 1, busy: false, wakes: 0 });
  return out;
}

/** The steps of one request, in microseconds since it came and in words, as far as it came. */
export function stepsOf(seen: Seen): { name: string; from: number; to: number; time: string }[] {
  const marks: [string, number | null][] = [
    ['Waiting for a place', seen.placedUs],
    ['Making the instance', seen.instantiatedUs],
    ['The guest, to the first byte', seen.answeredUs],
    [seen.answeredUs === null ? 'Until it was given up' : 'The rest of the answer', seen.endedUs],
  ];
  const out = [];
  let from = 0;
  for (const [name, mark] of marks) {
    if (mark === null) continue;
    const to = Math.max(mark, from);
    out.push({ name, from, to, time: duration((to - from) / 1000) });
    from = to;
  }
  return out;
}

/** A request as a bar in the lane of an instance. */
export interface Bar {
  lane: number;
  /** From 0 to 1 of what is drawn. */
  from: number;
  to: number;
  request: Request;
}
/** Time in which nothing was: cut out of the drawing, and told. */
export interface Gap {
  /** Where it was, from 0 to 1. */
  at: number;
  ms: number;
}

/** A rest is drawn so wide at most: as much of the drawing as the work between two rests of the same number. */
const GAP_PART = 0.02;

/**
 * Requests as bars in lanes: one lane is one instance at a time, and requests that overlap are in different ones. What lies
 * between two requests is drawn as long as it was only if it is shorter than all the work together; a longer rest is cut.
 */
export function lanes(requests: Request[], most: number): { bars: Bar[]; gaps: Gap[]; lanes: number } {
  const sorted = [...requests].sort((a, b) => a.atMs - b.atMs).slice(-most);
  const end = (one: Request) => one.atMs + Math.max(1, one.endedUs / 1000);
  // The work: spans in which at least one request was there.
  const spans: { from: number; to: number }[] = [];
  for (const one of sorted) {
    const last = spans.at(-1);
    if (last && one.atMs <= last.to) last.to = Math.max(last.to, end(one));
    else spans.push({ from: one.atMs, to: end(one) });
  }
  const work = spans.reduce((sum, span) => sum + span.to - span.from, 0);
  const rest = Math.max(1, work * GAP_PART);
  let drawn = 0;
  const gaps: { at: number; ms: number }[] = [];
  const begins = spans.map((span, at) => {
    const between = at === 0 ? 0 : span.from - spans[at - 1]!.to;
    if (between > rest) gaps.push({ at: drawn + rest / 2, ms: between });
    drawn += Math.min(between, rest);
    const begin = drawn;
    drawn += span.to - span.from;
    return begin;
  });
  const whole = Math.max(1, drawn);
  const free: number[] = [];
  let span = 0;
  const bars = sorted.map((request): Bar => {
    while (spans[span + 1] && request.atMs >= spans[span + 1]!.from) span++;
    const from = begins[span]! + request.atMs - spans[span]!.from;
    const to = from + end(request) - request.atMs;
    let lane = free.findIndex((until) => until <= request.atMs);
    if (lane < 0) lane = free.length;
    free[lane] = end(request);
    return { lane, from: from / whole, to: to / whole, request };
  });
  return { bars, gaps: gaps.map(({ at, ms }) => ({ at: at / whole, ms })), lanes: free.length };
}
