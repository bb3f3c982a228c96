// Who calls whom: what workers have counted, by workload, and where each is drawn. Pure.

import { add, quantile, type PodRecord } from './record';

/** A Pod as the map needs it. */
export interface Place {
  pod: string;
  ip: string;
  /** What it belongs to: `shop/cart`. */
  workload: string;
  /** Where that has its page. */
  href: string;
}
export interface Call {
  from: string;
  to: string;
  requests: number;
  failed: number;
  /** How long the heads of the answers took, in buckets below these bounds. */
  answered: number[];
  boundsUs: number[];
}
export interface Box {
  id: string;
  href: string;
  /** Column and row. */
  column: number;
  row: number;
}

const WORDS: Record<string, string> = {
  outside: 'Outside',
  // Another worker: of another node, or of another namespace on the same one.
  peer: 'Elsewhere',
  others: 'Others',
};

/** The calls between workloads, the most first. */
export function callsOf(records: PodRecord[], places: Place[]): Call[] {
  const byPod = new Map(places.map((place) => [place.pod, place.workload]));
  const byIp = new Map(places.filter(({ ip }) => ip !== '').map((place) => [place.ip, place.workload]));
  const calls = new Map<string, Call>();
  for (const { pod, containers } of records) {
    const to = byPod.get(pod) ?? pod;
    const edges = containers.flatMap(({ record }) =>
      record.edges.map((edge) => ({ ...edge, boundsUs: record.boundsUs })),
    );
    for (const { from: sender, requests, failed, answered, boundsUs } of edges) {
      // A Pod that has gone since, or that may not be seen, is its address.
      const from = WORDS[sender] ?? byIp.get(sender) ?? sender;
      const key = wayOf({ from, to });
      const known = calls.get(key) ?? { from, to, requests: 0, failed: 0, answered: [], boundsUs };
      calls.set(key, {
        ...known,
        requests: known.requests + requests,
        failed: known.failed + failed,
        // A node of an older version does not tell.
        answered: add(known.answered, answered ?? []),
      });
    }
  }
  return [...calls.values()].sort((a, b) => b.requests - a.requests || a.to.localeCompare(b.to));
}

/** What tells two ways apart. */
export function wayOf({ from, to }: Pick<Call, 'from' | 'to'>): string {
  return `${from} ${to}`;
}

/** The time below which 95 of 100 answers of a way began, in milliseconds; null where none did. */
export function slowest({ boundsUs, answered }: Call): number | null {
  const us = quantile(boundsUs, answered, 0.95);
  return us === null ? null : us / 1000;
}

/** Requests a second of each way, from what was counted at two times; a Pod that began anew counts from nothing. */
export function ratesOf(before: Call[], now: Call[], seconds: number): Map<string, number> {
  const known = new Map(before.map((call) => [wayOf(call), call.requests]));
  return new Map(
    now.map((call): [string, number] => {
      const more = call.requests - (known.get(wayOf(call)) ?? 0);
      return [wayOf(call), seconds > 0 ? Math.max(0, more) / seconds : 0];
    }),
  );
}

/** Boxes in columns: who calls stands left of who is called; a circle is cut where it closes. */
export function layout(calls: Call[], places: Place[]): Box[] {
  const hrefs = new Map(places.map((place) => [place.workload, place.href]));
  const ids = [...new Set(calls.flatMap(({ from, to }) => [from, to]))].sort();
  const columns = new Map<string, number>();
  const looking = new Set<string>();
  const columnOf = (id: string): number => {
    const known = columns.get(id);
    if (known !== undefined) return known;
    looking.add(id);
    const callers = calls.filter(({ from, to }) => to === id && !looking.has(from));
    const column = Math.max(0, ...callers.map(({ from }) => columnOf(from) + 1));
    looking.delete(id);
    columns.set(id, column);
    return column;
  };
  ids.forEach(columnOf);
  const rows = new Map<number, number>();
  return ids.map((id) => {
    const column = columns.get(id) ?? 0;
    const row = rows.get(column) ?? 0;
    rows.set(column, row + 1);
    return { id, href: hrefs.get(id) ?? '', column, row };
  });
}
