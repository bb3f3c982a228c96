// How many requests there were in the last hour, as `/ui/lately` tells it. Pure but for `fetchLately`.

import { call } from './api';
import { counted, duration } from './format';
import { quantile } from './record';

export interface Lately {
  /** The newest minute since 1970. */
  minute: number;
  /** Nodes that there are, that were asked, and of these those that did not answer. */
  nodes: number;
  asked: number;
  silent: number;
  /** How long the heads of the answers took, in buckets. */
  boundsUs: number[];
  answered: number[];
  minutes: [at: number, requests: number, failed: number, wakes: number][];
  /** Where they were asked for: requests of each minute, the oldest first. */
  workloads: { namespace: string; name: string; requests: number[] }[];
}

export const MINUTES = 60;

export function fetchLately(namespaces: string[], each = false): Promise<Lately> {
  const query: Record<string, string> = { namespaces: namespaces.join(',') };
  if (each) query.each = '1';
  return call<Lately>('/ui/lately', { query });
}

/** One figure: what it is of, its value in words, and how it went minute by minute. */
export interface Figure {
  name: string;
  value: string;
  about: string;
  values: number[];
  bad?: boolean;
}

/** What Home says of the last hour. */
export function figures(lately: Lately): Figure[] {
  const of = (which: 1 | 2 | 3): number[] => {
    const known = new Map(lately.minutes.map((minute) => [minute[0], minute[which]]));
    return Array.from({ length: MINUTES }, (_, at) => known.get(lately.minute - MINUTES + 1 + at) ?? 0);
  };
  const sum = (values: number[]) => values.reduce((all, one) => all + one, 0);
  const [requests, failed, wakes] = [of(1), of(2), of(3)];
  const [all, broken] = [sum(requests), sum(failed)];
  const us = quantile(lately.boundsUs, lately.answered, 0.95);
  return [
    { name: 'Requests', value: rate(all / (MINUTES * 60)), about: `${all.toLocaleString('en')} in the hour`, values: requests },
    {
      name: 'Failed',
      value: broken.toLocaleString('en'),
      about: all > 0 ? `${percent(broken / all)} of them` : '',
      values: failed,
      bad: broken > 0,
    },
    { name: '95 of 100 answered in', value: us === null ? 'nothing yet' : duration(us / 1000), about: 'to the first byte', values: [] },
    { name: 'Wakes', value: sum(wakes).toLocaleString('en'), about: 'from rest', values: wakes },
  ];
}

/** `12 a second`, `4 a minute`. */
export function rate(aSecond: number): string {
  if (aSecond === 0) return 'none';
  if (aSecond < 1) return `${round(aSecond * 60)} a minute`;
  return `${round(aSecond)} a second`;
}

function round(value: number): string {
  return (value < 10 ? Math.round(value * 10) / 10 : Math.round(value)).toLocaleString('en');
}

function percent(share: number): string {
  return share > 0 && share < 0.001 ? 'under 0.1 %' : `${Math.round(share * 1000) / 10} %`;
}

/** What the figures leave out, in a sentence; empty if nothing. */
export function leftOut({ nodes, asked, silent }: Pick<Lately, 'nodes' | 'asked' | 'silent'>): string {
  const parts = [];
  if (silent > 0) parts.push(`${counted(silent, 'node')} did not answer`);
  if (asked < nodes) parts.push(`these are ${asked} of ${counted(nodes, 'node')}`);
  return parts.length > 0 ? `Not of everything: ${parts.join(', and ')}.` : '';
}
