// Completion and help from the server's own OpenAPI v3: where in a manifest the cursor is, and what may stand there.
// `pathAt`, `resolve` and `offers` are pure; `schemasOf` fetches a document once.

import { call } from './api';

export interface Schema {
  type?: string;
  description?: string;
  properties?: Record<string, Schema>;
  additionalProperties?: Schema | boolean;
  items?: Schema;
  required?: string[];
  enum?: string[];
  $ref?: string;
  allOf?: Schema[];
  'x-kubernetes-group-version-kind'?: { group: string; version: string; kind: string }[];
}
export type Schemas = Record<string, Schema>;

export interface Place {
  /** Keys from the top of the document; `[]` for an element of a list. */
  path: string[];
  /** What of a key or value is typed already, and whether it is a value. */
  typed: string;
  value: boolean;
}

/** Where a position is, read from the indentation: the text may be unfinished YAML. */
export function pathAt(text: string, at: number): Place {
  const before = text.slice(0, at).split('\n');
  const line = before.pop() ?? '';
  const own = parts(line);
  const path: string[] = [];
  let indent = own.indent;
  if (own.dash) path.unshift('[]');
  // Inside `- `, keys stand behind the dash; the list itself may be as far left as its key.
  let limit = own.dash ? own.dashAt : indent;
  let openList = own.dash;
  for (const previous of before.reverse()) {
    if (previous.trim() === '---') break;
    const one = parts(previous);
    if (one.blank) continue;
    if (one.dash && one.indent === indent && !openList) {
      // The first key of the same element.
      path.unshift('[]');
      limit = one.dashAt;
      openList = true;
      continue;
    }
    const place = one.dash ? one.indent : one.indent;
    const above = openList ? place <= limit && !(one.dash && one.dashAt === limit) : place < limit;
    if (!above || one.key === '') continue;
    path.unshift(one.key);
    indent = one.indent;
    limit = one.indent;
    openList = false;
    if (one.dash) {
      path.unshift('[]');
      limit = one.dashAt;
      openList = true;
    }
  }
  const value = own.key !== '' && own.colon;
  return { path: value ? [...path, own.key] : path, typed: value ? own.rest : own.key, value };
}

function parts(line: string) {
  const found = /^(\s*)((?:- +|-$)*)([\w./-]*)(:?)(.*)$/.exec(line);
  const [, space = '', dashes = '', key = '', colon = '', rest = ''] = found ?? [];
  return {
    blank: line.trim() === '' || line.trim().startsWith('#'),
    dash: dashes !== '',
    dashAt: space.length,
    indent: space.length + dashes.length,
    key,
    colon: colon === ':',
    rest: rest.trim(),
  };
}

/** A schema behind its references. */
export function resolve(schema: Schema | undefined, all: Schemas): Schema | undefined {
  let found = schema;
  for (let hops = 0; found && hops < 8; hops++) {
    const ref: string | undefined =
      found.$ref ?? (found.allOf?.length === 1 ? found.allOf[0]!.$ref : undefined);
    if (!ref) return found;
    found = all[ref.replace('#/components/schemas/', '')];
  }
  return found;
}

/** The schema at a path below another. */
export function below(top: Schema | undefined, path: string[], all: Schemas): Schema | undefined {
  let schema = resolve(top, all);
  for (const key of path) {
    if (!schema) return undefined;
    if (key === '[]') schema = resolve(schema.items, all);
    else if (schema.properties?.[key]) schema = resolve(schema.properties[key], all);
    else
      schema =
        typeof schema.additionalProperties === 'object'
          ? resolve(schema.additionalProperties, all)
          : undefined;
  }
  return schema;
}

export interface Offer {
  label: string;
  type: string;
  about: string;
  required: boolean;
}

/** What may stand at a place. */
export function offers(top: Schema | undefined, place: Place, all: Schemas): Offer[] {
  const schema = below(top, place.path, all);
  if (place.value) {
    const words = schema?.enum ?? (schema?.type === 'boolean' ? ['true', 'false'] : []);
    return words.map((label) => ({ label, type: '', about: '', required: false }));
  }
  const list = Object.entries(schema?.properties ?? {}).map(([label, one]) => {
    const found = resolve(one, all);
    return {
      label,
      type: found?.type ?? '',
      about: one.description ?? found?.description ?? '',
      required: schema?.required?.includes(label) ?? false,
    };
  });
  return list.sort((a, b) => Number(b.required) - Number(a.required) || a.label.localeCompare(b.label));
}

/** The schema of a manifest's kind. */
export function kindIn(all: Schemas, apiVersion: string, kind: string): Schema | undefined {
  const [group, version] = apiVersion.includes('/') ? apiVersion.split('/') : ['', apiVersion];
  return Object.values(all).find((schema) =>
    schema['x-kubernetes-group-version-kind']?.some(
      (one) => one.kind === kind && one.group === group && one.version === version,
    ),
  );
}

const documents = new Map<string, Promise<Schemas>>();

/** The schemas of an `apiVersion`, fetched once. */
export function schemasOf(apiVersion: string): Promise<Schemas> {
  const path = `/openapi/v3/${apiVersion.includes('/') ? 'apis' : 'api'}/${apiVersion}`;
  const found =
    documents.get(path) ??
    call<{ components?: { schemas?: Schemas } }>(path).then((document) => document.components?.schemas ?? {});
  documents.set(path, found);
  // A kind that is not there yet may come.
  found.catch(() => documents.delete(path));
  return found;
}

/** `apiVersion` and `kind` of the document around a position. */
export function manifestAt(text: string, at: number): { apiVersion: string; kind: string } {
  const start = Math.max(0, text.lastIndexOf('\n---', at - 1));
  const end = text.indexOf('\n---', at);
  const document = text.slice(start, end < 0 ? text.length : end);
  const field = (name: string) => new RegExp(`^${name}: *["']?([\\w./-]+)`, 'm').exec(document)?.[1] ?? '';
  return { apiVersion: field('apiVersion'), kind: field('kind') };
}
