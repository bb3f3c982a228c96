// What has changed, as `/ui/history` tells it.

import { call } from './api';
import { moment, seconds } from './format';

export interface Change {
  revision: number;
  verb: 'created' | 'changed' | 'deleted';
  /** The kind as it stands in an address. */
  word: string;
  kind: string;
  name: string;
  namespace: string;
  /** The user, where the member has answered the request itself. */
  by?: string;
  /** The manager of the fields. */
  with?: string;
  time?: string;
  fields: { path: string; from: string | null; to: string | null }[];
  more: number;
}
export interface Since {
  /** Since when nothing is missing. */
  since: string;
  /** Why not since before. */
  limit: 'start' | 'gap' | 'room' | 'day';
}
export interface Told extends Since {
  /** Whether these are all there are. */
  whole: boolean;
  changes: Change[];
}
export interface Asked {
  namespaces?: string[];
  kind?: string;
  name?: string;
  /** Changes of nothing but a status as well. */
  statuses?: boolean;
  /** Only what people did. */
  people?: boolean;
  /** Only what was before this revision. */
  before?: number;
  /** Words of kinds that are left out. */
  without?: string[];
  /** How many at most. */
  count?: number;
}

export function changes({
  namespaces = [],
  kind,
  name,
  statuses,
  people,
  before,
  without = [],
  count,
}: Asked): Promise<Told> {
  const query: Record<string, string> = { namespaces: namespaces.join(',') };
  if (kind) query.kind = kind;
  if (name) query.name = name;
  if (statuses) query.statuses = '1';
  if (people) query.people = '1';
  if (before !== undefined) query.before = String(before);
  if (without.length > 0) query.without = without.join(',');
  if (count !== undefined) query.count = String(count);
  return call<Told>('/ui/history', { query });
}

const LIMITS: Record<Since['limit'], string> = {
  start: ', when it started: changes are kept in its memory',
  gap: ', when it had fallen behind and began anew',
  room: '; what was before did not fit into its memory',
  day: ', a day ago',
};

/** `12:00:00, when it started: …`: how far back one can go, and why no further. */
export function since({ since, limit }: Since): string {
  return moment(seconds(since)) + LIMITS[limit];
}

/** Who made a change, and with what, as far as both are known: `by anna with kubectl-edit`. */
export function author({ by, with: tool }: Pick<Change, 'by' | 'with'>): string {
  // A part of the control plane is its own tool.
  const others = tool && !by?.endsWith(`:${tool}`);
  return [...(by ? [`by ${by}`] : []), ...(others ? [`with ${tool}`] : [])].join(' ');
}

/** A changed field in words. */
export function how({ path, from, to }: Change['fields'][number]): string {
  if (from === null) return `${path}: ${to}`;
  return to === null ? `${path}: ${from} taken out` : `${path}: ${from} → ${to}`;
}
