// Objects as YAML for people: without what only machines keep, and back again. Loaded with the pages that need it.

import { parseAllDocuments, stringify } from 'yaml';
import type { KubeObject } from './api';

/** YAML of an object; `whole` keeps what only machines look at. */
export function toYaml(object: unknown, whole = false): string {
  return stringify(whole ? object : quiet(object), { lineWidth: 0, aliasDuplicateObjects: false });
}

/** An object without its noise: who manages which field, and the copy of the last apply. */
export function quiet(object: unknown): unknown {
  if (object === null || typeof object !== 'object' || !('metadata' in object)) return object;
  const { managedFields: _, ...metadata } = { ...(object as KubeObject).metadata } as Record<string, unknown>;
  const { 'kubectl.kubernetes.io/last-applied-configuration': __, ...annotations } = (metadata.annotations ??
    {}) as Record<string, string>;
  if (Object.keys(annotations).length > 0) metadata.annotations = annotations;
  else delete metadata.annotations;
  return { ...object, metadata };
}

/** What of an object a diff compares: the server's own counters aside. */
export function comparable(object: unknown): unknown {
  const plain = quiet(object) as { metadata?: Record<string, unknown> };
  if (!plain?.metadata) return plain;
  const { resourceVersion: _, generation: __, ...metadata } = plain.metadata;
  return { ...plain, metadata };
}

export interface Mistake {
  message: string;
  /** Position in the text. */
  from: number;
  to: number;
}

/** The objects in a text of YAML documents, and where it is wrong. */
export function parse(text: string): { objects: KubeObject[]; mistakes: Mistake[] } {
  const documents = parseAllDocuments(text, { prettyErrors: false });
  const list = Array.isArray(documents) ? documents : [];
  const mistakes: Mistake[] = list.flatMap((document) =>
    document.errors.map(({ message, pos }) => ({ message, from: pos[0], to: pos[1] })),
  );
  const objects =
    mistakes.length > 0
      ? []
      : list.map((document) => document.toJS() as unknown).filter((one) => one !== null);
  for (const one of objects) {
    const object = one as Partial<KubeObject>;
    if (typeof one !== 'object' || !object.kind || !object.apiVersion || !object.metadata) {
      mistakes.push({
        message: 'Every document needs apiVersion, kind and metadata.',
        from: 0,
        to: Math.min(text.length, 1),
      });
      return { objects: [], mistakes };
    }
  }
  return { objects: objects as KubeObject[], mistakes };
}
