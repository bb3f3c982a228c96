// Two changes of one object put together: what only one of both has changed is theirs, what both have is told. Pure.

import type { KubeObject } from './api';
import { quiet } from './manifest';

/** A field that both have changed, each in another way. */
export interface Clash {
  path: string;
  mine: string;
  theirs: string;
}

type Fields = Record<string, unknown>;

function isFields(value: unknown): value is Fields {
  return value !== null && typeof value === 'object' && !Array.isArray(value);
}

function same(a: unknown, b: unknown): boolean {
  if (a === b) return true;
  if (Array.isArray(a) && Array.isArray(b)) return a.length === b.length && a.every((one, at) => same(one, b[at]));
  if (!isFields(a) || !isFields(b)) return false;
  const keys = Object.keys(a);
  return keys.length === Object.keys(b).length && keys.every((key) => key in b && same(a[key], b[key]));
}

/** The items of a list by their names, as Kubernetes' lists of containers, ports and variables are; null of any other. */
function byName(list: unknown): Map<string, unknown> | null {
  if (!Array.isArray(list)) return null;
  const names = list.map((one) => (isFields(one) && typeof one.name === 'string' ? one.name : ''));
  const whole = names.every((name) => name !== '') && new Set(names).size === names.length;
  return whole ? new Map(names.map((name, at) => [name, list[at]])) : null;
}

function told(value: unknown): string {
  return value === undefined ? 'taken out' : typeof value === 'string' ? value : JSON.stringify(value);
}

function both(path: string, base: unknown, mine: unknown, theirs: unknown, clashes: Clash[]): unknown {
  if (same(mine, theirs) || same(theirs, base)) return mine;
  if (same(mine, base)) return theirs;
  if (isFields(mine) && isFields(theirs)) {
    const from = isFields(base) ? base : {};
    const keys = new Set([...Object.keys(mine), ...Object.keys(theirs)]);
    const out: Fields = {};
    for (const key of keys) {
      const value = both(path ? `${path}.${key}` : key, from[key], mine[key], theirs[key], clashes);
      if (value !== undefined) out[key] = value;
    }
    return out;
  }
  const [named, others] = [byName(mine), byName(theirs)];
  if (named && others) {
    const from = byName(base) ?? new Map<string, unknown>();
    const names = [...new Set([...named.keys(), ...others.keys()])];
    return names
      .map((name) => both(`${path}[${name}]`, from.get(name), named.get(name), others.get(name), clashes))
      .filter((value) => value !== undefined);
  }
  clashes.push({ path, mine: told(mine), theirs: told(theirs) });
  return mine;
}

/**
 * What one has made of `base` and what is on the server now, as one object that can be put there. Where both have changed the
 * same field it has one's own value, and the clash is told.
 */
export function merge(base: KubeObject, mine: KubeObject, theirs: KubeObject): { merged: KubeObject; clashes: Clash[] } {
  // What the server counts and what controllers say is the server's, whatever stands in a text.
  const ofServer = (object: KubeObject): KubeObject => ({
    ...object,
    metadata: { ...object.metadata, resourceVersion: theirs.metadata.resourceVersion, generation: theirs.metadata.generation },
    status: theirs.status,
  });
  const clashes: Clash[] = [];
  const plain = (object: KubeObject) => quiet(ofServer(object));
  const merged = both('', plain(base), plain(mine), plain(theirs), clashes) as KubeObject;
  return { merged, clashes };
}
