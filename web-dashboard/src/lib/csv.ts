// A list as comma-separated values, as spreadsheets read them. Pure.

import type { Kind } from './kinds';
import type { Column, Row } from './stream';

/** Columns that tell how long ago something was: a file keeps the moment. */
const AGES: Record<string, string> = { Age: 'Created', 'Last Seen': 'Last seen' };

/** The table with its head; times in UTC. */
export function csv(kind: Kind, columns: Column[], rows: Row[]): string {
  const hasState = rows.some((row) => row.state);
  const head = [
    ...(kind.namespaced ? ['Namespace'] : []),
    ...columns.map(({ name }) => AGES[name] ?? name),
    ...(hasState ? ['State', 'Why'] : []),
  ];
  const lines = rows.map((row) => [
    ...(kind.namespaced ? [row.namespace ?? ''] : []),
    ...columns.map(({ name }, at) => (AGES[name] ? time(row.at) : text(row.cells[at]))),
    ...(hasState ? [row.state?.[1] ?? '', row.state?.[2] ?? ''] : []),
  ]);
  return [head, ...lines].map((line) => line.map(quoted).join(',') + '\r\n').join('');
}

function time(at: number): string {
  return at > 0 ? new Date(at * 1000).toISOString().replace('.000', '') : '';
}

function text(cell: Row['cells'][number] | undefined): string {
  return cell === null || cell === undefined || cell === '<none>' ? '' : String(cell);
}

/** One value. What a spreadsheet would take for a formula is marked as text: others have written it. */
function quoted(value: string): string {
  const isNumber = /^[+-]?[0-9.]+$/.test(value);
  const safe = /^[=+\-@\t\r]/.test(value) && !isNumber ? `'${value}` : value;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
