// What a list shows as a file: its rows as CSV, or the objects themselves. Loaded when somebody asks for it.

import { call, pathOf, type KubeObject } from './api';
import { csv } from './csv';
import type { Kind } from './kinds';
import { quiet, toYaml } from './manifest';
import { stream, type Open, type Row, type Told } from './stream';
import { take, type Listing } from './window';

export type Form = 'csv' | 'json' | 'yaml';
/** A file of more is made with kubectl. */
const ROWS_MAX = 20_000;
/** Whole objects are large: a file of so many is some ten megabytes. */
const OBJECTS_MAX = 5000;
/** What the server gives of a list at a time. */
const WINDOW = 500;
/** A server that says nothing for so long is away. */
const SILENCE_MS = 30_000;

const TYPES: Record<Form, string> = { csv: 'text/csv', json: 'application/json', yaml: 'application/yaml' };

/** Makes the file of all that a list shows, and gives it to the browser; says what it holds. */
export async function save(kind: Kind, open: Open, form: Form): Promise<number> {
  const most = form === 'csv' ? ROWS_MAX : OBJECTS_MAX;
  const listing = await rowsOf(open, most);
  const text = form === 'csv' ? csv(kind, listing.columns, listing.rows) : await objectsAs(form, kind, listing.rows);
  const anchor = document.createElement('a');
  anchor.href = URL.createObjectURL(new Blob([text], { type: TYPES[form] }));
  anchor.download = `${kind.resource}.${form}`;
  anchor.click();
  URL.revokeObjectURL(anchor.href);
  return listing.rows.length;
}

/** All rows that a look shows, window by window. */
function rowsOf(open: Open, most: number): Promise<Listing> {
  const rows = new Map<string, Row>();
  let listing: Listing | null = null;
  let from = 0;
  return new Promise((done, failed) => {
    let timer = 0;
    const end = (then: () => void) => {
      clearTimeout(timer);
      stream.close(id);
      then();
    };
    const wait = () => {
      clearTimeout(timer);
      timer = window.setTimeout(() => end(() => failed(new Error('The server does not answer.'))), SILENCE_MS);
    };
    const told = (message: Told) => {
      if (message.error) return end(() => failed(new Error(message.error?.message)));
      listing = take(listing, message);
      // Changes of the window before may come once more.
      if (!listing || !message.order || message.from !== from) return;
      if (listing.shown > most) {
        const many = `${listing.shown.toLocaleString('en')} rows are too many for a file of at most ${most.toLocaleString('en')}`;
        return end(() => failed(new Error(`${many}: filter the list, or use kubectl.`)));
      }
      for (const row of listing.rows) rows.set(row.uid, row);
      from += WINDOW;
      if (from >= listing.shown) {
        const whole = { ...listing, rows: [...rows.values()] };
        return end(() => done(whole));
      }
      wait();
      stream.look(id, { from, count: WINDOW });
    };
    const id = stream.open({ ...open, from: 0, count: WINDOW }, told);
    wait();
  });
}

/** The objects of some rows, as `kubectl get -o` prints several. Of Secrets their values stay out. */
async function objectsAs(form: 'json' | 'yaml', kind: Kind, rows: Row[]): Promise<string> {
  const wanted = new Set(rows.map((row) => row.uid));
  const namespaces = kind.namespaced ? [...new Set(rows.map((row) => row.namespace ?? ''))] : [undefined];
  const items: unknown[] = [];
  for (const namespace of rows.length > 0 ? namespaces : []) {
    const found = await all(kind, namespace);
    const own = found.filter((object) => wanted.has(object.metadata.uid ?? ''));
    // In a list an object does not say of which kind it is.
    items.push(...own.map((object) => ({ ...head(kind), ...(quiet(object) as object), ...head(kind) })));
  }
  const list = { apiVersion: 'v1', kind: 'List', items };
  return form === 'json' ? JSON.stringify(list, null, 2) + '\n' : toYaml(list, true);
}

function head({ group, version, kind }: Kind) {
  return { apiVersion: group === '' ? version : `${group}/${version}`, kind };
}

async function all({ group, version, resource }: Kind, namespace: string | undefined): Promise<KubeObject[]> {
  const isSecret = group === '' && resource === 'secrets';
  const accept = isSecret
    ? 'application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1'
    : 'application/json';
  const out: KubeObject[] = [];
  let next = '';
  do {
    const query = { limit: String(WINDOW), ...(next ? { continue: next } : {}) };
    const page: { items: KubeObject[]; metadata?: { continue?: string } } = await call(
      pathOf({ group, version, resource, namespace }),
      { query, accept },
    );
    out.push(...page.items);
    next = page.metadata?.continue ?? '';
  } while (next !== '');
  return out;
}
