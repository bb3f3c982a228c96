// Who calls whom: what workers have counted, by workload, and where each is drawn. Pure.

import type { PodRecord } from './record';

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
  busyUs: number;
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
  peer: 'Other nodes',
  others: 'Others',
};

/** The calls between workloads, the most first. */
export function callsOf(records: PodRecord[], places: Place[]): Call[] {
  const byPod = new Map(places.map((place) => [place.pod, place.workload]));
  const byIp = new Map(places.filter(({ ip }) => ip !== '').map((place) => [place.ip, place.workload]));
  const calls = new Map<string, Call>();
  for (const { pod, containers } of records) {
    const to = byPod.get(pod) ?? pod;
    for (const { from: sender, requests, failed, busyUs } of containers.flatMap((one) => one.record.edges)) {
      // A Pod that has gone since, or that may not be seen, is its address.
      const from = WORDS[sender] ?? byIp.get(sender) ?? sender;
      const key = `${from} ${to}`;
      const known = calls.get(key) ?? { from, to, requests: 0, failed: 0, busyUs: 0 };
      calls.set(key, {
        ...known,
        requests: known.requests + requests,
        failed: known.failed + failed,
        busyUs: known.busyUs + busyUs,
      });
    }
  }
  return [...calls.values()].sort((a, b) => b.requests - a.requests || a.to.localeCompare(b.to));
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
