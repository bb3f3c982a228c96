// What the browser holds of one list: the rows of the window, put together from messages. Pure.

import type { Health } from './format';
import type { Column, Row, Told } from './stream';

/** A row, and which of its cells have just changed. */
export interface Shown extends Row {
  changed?: Set<number>;
}
export interface Listing {
  columns: Column[];
  /** The namespaces that the person may see, where they may not see all. */
  namespaces: string[] | null;
  /** All objects, and those that the filter leaves. */
  total: number;
  shown: number;
  health: Partial<Record<Health, number>>;
  /** Position of the first row. */
  from: number;
  rows: Shown[];
  /** Rows that would come, go or move if nobody were reading. */
  waiting?: number;
}

/** The listing after one message; the same one where nothing in it changes. */
export function take(before: Listing | null, message: Told): Listing | null {
  if (message.columns) {
    return {
      columns: message.columns,
      namespaces: message.namespaces ?? null,
      total: 0,
      shown: 0,
      health: {},
      from: 0,
      rows: [],
      // What is on the screen stays there until the first rows of the new list have come.
      ...(before && {
        total: before.total,
        shown: before.shown,
        health: before.health,
        from: before.from,
        rows: before.rows,
      }),
    };
  }
  if (!before || !message.order) return before;
  const known = new Map<string, Shown>(before.rows.map((row) => [row.uid, row]));
  for (const row of message.rows ?? []) known.set(row.uid, marked(known.get(row.uid), row));
  const rows = message.order.map((uid) => known.get(uid)).filter((row): row is Shown => row !== undefined);
  const { total = 0, shown = 0, from = 0, health = {} } = message;
  return { ...before, total, shown, from, health, rows };
}

function marked(before: Shown | undefined, row: Row): Shown {
  if (!before || before.version === row.version) return row;
  const changed = new Set<number>();
  row.cells.forEach((cell, at) => cell !== before.cells[at] && changed.add(at));
  return { ...row, changed };
}

/** What is shown while somebody's pointer is on the list: rows change, their order does not. */
export function steady(shown: Listing | null, next: Listing): Listing {
  if (!shown || shown.from !== next.from || shown.columns !== next.columns) return next;
  const moved = next.rows.filter((row, at) => shown.rows[at]?.uid !== row.uid).length;
  const gone = shown.rows.length - next.rows.length;
  const waiting = Math.max(moved, gone);
  if (waiting === 0) return next;
  const known = new Map(next.rows.map((row) => [row.uid, row]));
  return { ...shown, rows: shown.rows.map((row) => known.get(row.uid) ?? row), waiting };
}

/** A row's cell by its column's name, as text. */
export function cell(listing: Listing, row: Row, name: string): string {
  const at = listing.columns.findIndex((column) => column.name === name);
  return at < 0 ? '' : String(row.cells[at] ?? '');
}
