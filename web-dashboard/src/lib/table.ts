// A kind's objects as the API server prints them, kept up to date by watch.
//
// One list, then one watch from its resourceVersion, both as Tables with metadata: a tenth of the bytes of whole
// objects. When the stream ends it goes on from the last resourceVersion; when that is too old (410), from a new list.

import { reasonOf } from './session';

export interface Metadata {
  name: string;
  namespace?: string;
  uid: string;
  resourceVersion: string;
  creationTimestamp?: string;
  deletionTimestamp?: string;
  ownerReferences?: { kind: string; name: string; uid: string; controller?: boolean }[];
}
export interface Row {
  meta: Metadata;
  cells: Record<string, string | number>;
}
interface ApiTable {
  metadata?: { resourceVersion?: string };
  columnDefinitions?: { name: string }[] | null;
  rows?: { cells: (string | number)[]; object: { metadata: Metadata } }[] | null;
}
interface WatchEvent {
  type: 'ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK' | 'ERROR';
  object: ApiTable & { code?: number; message?: string };
}

const TABLE = 'application/json;as=Table;v=v1;g=meta.k8s.io';
const RETRY_MS_MIN = 250;
const RETRY_MS_MAX = 8000;

export type State =
  | { word: 'loading' }
  | { word: 'live' }
  | { word: 'away'; reason: string; since: number };

/** The rows of one resource; `changed` is called once for each batch of changes. */
export class TableWatch {
  readonly rows = new Map<string, Row>();
  state: State = { word: 'loading' };
  private columns: string[] = [];
  private readonly stop = new AbortController();

  constructor(
    private readonly path: string,
    private readonly changed: () => void,
  ) {
    void this.run();
  }

  close(): void {
    this.stop.abort();
  }

  private async run(): Promise<void> {
    let version: string | null = null;
    let retry = RETRY_MS_MIN;
    while (!this.stop.signal.aborted) {
      try {
        version ??= await this.list();
        this.set({ word: 'live' });
        retry = RETRY_MS_MIN;
        version = await this.follow(version);
      } catch (error) {
        if (this.stop.signal.aborted) return;
        const since = this.state.word === 'away' ? this.state.since : Date.now();
        this.set({ word: 'away', reason: (error as Error).message, since });
        await new Promise((done) => setTimeout(done, retry));
        retry = Math.min(retry * 2, RETRY_MS_MAX);
      }
    }
  }

  private set(state: State): void {
    this.state = state;
    this.changed();
  }

  private async fetch(query: string): Promise<Response> {
    const response = await fetch(this.path + query, {
      headers: { accept: TABLE },
      signal: this.stop.signal,
    });
    if (!response.ok) throw new Error(await reasonOf(response));
    return response;
  }

  private async list(): Promise<string> {
    const table = (await (await this.fetch('')).json()) as ApiTable;
    this.rows.clear();
    this.learnColumns(table);
    for (const row of rowsOf(table, this.columns)) this.rows.set(row.meta.uid, row);
    return table.metadata?.resourceVersion ?? '0';
  }

  /** Follows the stream to its end; returns where to go on, or null where a new list is needed. */
  private async follow(from: string): Promise<string | null> {
    const response = await this.fetch(
      `?watch=true&allowWatchBookmarks=true&resourceVersion=${from}`,
    );
    if (!response.body) throw new Error('the server sent no stream');
    let version = from;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return version;
      const lines = (rest + value).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines.filter((line) => line !== '')) {
        const event = JSON.parse(line) as WatchEvent;
        if (event.type === 'ERROR') {
          if (event.object.code === 410) return null;
          throw new Error(event.object.message ?? 'the watch failed');
        }
        version = this.take(event) ?? version;
      }
      this.changed();
    }
  }

  /** Applies one event and returns its resourceVersion. */
  private take(event: WatchEvent): string | undefined {
    this.learnColumns(event.object);
    const rows = rowsOf(event.object, this.columns);
    for (const row of rows) {
      if (event.type === 'DELETED') this.rows.delete(row.meta.uid);
      else if (event.type !== 'BOOKMARK') this.rows.set(row.meta.uid, row);
    }
    return rows.at(-1)?.meta.resourceVersion ?? event.object.metadata?.resourceVersion;
  }

  /** Column definitions come with a list and with the first event of a watch only. */
  private learnColumns(table: ApiTable): void {
    if (table.columnDefinitions?.length) {
      this.columns = table.columnDefinitions.map((column) => column.name);
    }
  }
}

/** A Table's rows with their cells by column name. */
export function rowsOf(table: ApiTable, columns: string[]): Row[] {
  return (table.rows ?? []).map(({ cells, object }) => ({
    meta: object.metadata,
    cells: Object.fromEntries(cells.map((cell, index) => [columns[index] ?? String(index), cell])),
  }));
}
