// What an object of any kind says: its fields, one after the other, for kinds that no page knows by name. Pure.

import type { KubeObject } from './api';

export interface Field {
  /** `spec.seats` */
  path: string;
  value: string;
}
/** More would be its YAML once more. */
const FIELDS_MAX = 40;
const VALUE_MAX = 200;
/** Shown elsewhere, or of no use to anybody who reads. */
const ELSEWHERE = new Set(['apiVersion', 'kind', 'metadata', 'status.conditions', 'status.observedGeneration']);

/** The fields of an object, the first ones, and how many more there are. */
export function fieldsOf(object: KubeObject): { fields: Field[]; more: number } {
  const all: Field[] = [];
  collect('', object, all);
  return { fields: all.slice(0, FIELDS_MAX), more: Math.max(0, all.length - FIELDS_MAX) };
}

function collect(path: string, value: unknown, out: Field[]): void {
  if (ELSEWHERE.has(path) || value === null || value === undefined) return;
  const isPlain = (one: unknown) => typeof one !== 'object' || one === null;
  if (isPlain(value)) out.push({ path, value: shortened(String(value)) });
  else if (Array.isArray(value) && value.every(isPlain)) out.push({ path, value: shortened(value.join(', ')) });
  else if (Array.isArray(value)) value.forEach((one, at) => collect(`${path}[${at}]`, one, out));
  else
    for (const [key, inner] of Object.entries(value as object))
      collect(path === '' ? key : `${path}.${key}`, inner, out);
}

function shortened(text: string): string {
  return text.length > VALUE_MAX ? `${text.slice(0, VALUE_MAX)}…` : text;
}
