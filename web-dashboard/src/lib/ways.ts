// Who asks what of which Service, as `/ui/traffic` tells it. Pure but for `fetchWays`.

import { call } from './api';
import { known, wordOf } from './kinds';
import { quantile } from './record';

/** What went from a workload to a port of a Service since the worker of the first began. */
export interface Way {
  /** `shop/cart`, or a word: `outside`, `ingress`, `others`, `elsewhere`. */
  from: string;
  to: string;
  port: string;
  requests: number;
  failed: number;
  /** Connections that were not opened: policies deny them, or nobody is there. */
  refused: number;
  sent: number;
  received: number;
  boundsUs: number[];
  answered: number[];
}
export interface Ways {
  atMs: number;
  /** Whether these are all that there are. */
  whole: boolean;
  nodes: number;
  asked: number;
  silent: number;
  ways: Way[];
}

export function fetchWays(namespaces: string[]): Promise<Ways> {
  return call<Ways>('/ui/traffic', { query: { namespaces: namespaces.join(',') } });
}

/** What tells two ways apart. */
export function keyOf({ from, to, port }: Way): string {
  return `${from} ${to} ${port}`;
}

/** Requests a second of each way between two answers; none where there were no two. */
export function ratesOf(before: Ways | null, now: Ways): Map<string, number> {
  const seconds = before ? (now.atMs - before.atMs) / 1000 : 0;
  if (!before || seconds <= 0) return new Map();
  const counts = new Map(before.ways.map((way) => [keyOf(way), way.requests]));
  return new Map(
    now.ways.flatMap((way): [string, number][] => {
      const count = counts.get(keyOf(way));
      // A worker that began anew counts from nothing.
      return count === undefined ? [] : [[keyOf(way), Math.max(0, way.requests - count) / seconds]];
    }),
  );
}

/** Milliseconds below which 95 of 100 answers began; null where none did. */
export function slowest({ boundsUs, answered }: Way): number | null {
  const us = quantile(boundsUs, answered, 0.95);
  return us === null ? null : us / 1000;
}

/** The parts of the address of a Service's page; null where it is not named. */
export function pageOf(service: string): [word: string, namespace: string, name: string] | null {
  const [namespace, name] = service.split('/');
  return namespace && name ? [wordOf(known('services')!), namespace, name] : null;
}
