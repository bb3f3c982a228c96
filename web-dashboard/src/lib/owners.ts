// The map of a workload: what leads to it, what it has made, what it uses, and where each is drawn. Pure.
//
// Columns from left to right: what leads to its Services · Services, and what decides about it · the workload itself ·
// what it has made, and what it uses · what those have made. Within a column a thing stands by what it hangs on.

import type { Health } from './format';
import { ownerOf } from './problems';
import type { Relation, Side } from './related';

/** Above so many, things that are alike become one box. */
export const GROUPED_ABOVE = 50;
/** So many that are alike stay apart all the same. */
const ALIKE_MAX = 3;

export interface Thing {
  /** As in a manifest: `ReplicaSet`. */
  kind: string;
  /** Its kind's word in an address. */
  word: string;
  name: string;
  state?: [health: Health, word: string] | undefined;
}
/** Something that a controller has made; its owner stands before it in a list of them. */
export interface Made extends Thing {
  owner: [kind: string, name: string];
}
export interface Box extends Thing {
  id: string;
  column: number;
  /** A half where the columns are not as high as each other. */
  row: number;
  /** How many things it stands for. */
  count: number;
  /** What it hangs on, for who cannot see the lines. */
  of: string;
}
export interface Line {
  from: string;
  to: string;
}
export interface Tree {
  boxes: Box[];
  lines: Line[];
  columns: number;
  rows: number;
}

/** The workload's own column. */
const OWN = 2;
const COLUMNS: Record<Side, number> = { leads: 0, governs: 1, sends: 1, used: OWN + 1 };
/** Services stand below what decides, beside what they have made. */
const BEFORE: Side[] = ['governs', 'sends', 'leads'];

interface Placed extends Thing {
  id: string;
  column: number;
  count: number;
}

/** The whole map; `ways` are those that lead to a Service, by its name. */
export function treeOf(
  own: Thing,
  relations: Relation[],
  ways: Map<string, [kind: string, name: string][]>,
  made: Made[],
): Tree {
  const placed = new Map<string, Placed>();
  const lines: Line[] = [];
  const put = (thing: Thing, column: number): string => {
    const id = idOf(thing.kind, thing.name);
    const { kind, word, name, state } = thing;
    placed.set(id, { kind, word, name, state, id, column, count: 1 });
    return id;
  };
  const center = put(own, OWN);
  for (const side of BEFORE) {
    for (const { kind, word, names } of relations.filter((one) => one.side === side)) {
      for (const name of names) {
        const id = put({ kind, word, name }, COLUMNS[side]);
        if (side !== 'leads') lines.push({ from: id, to: center });
      }
    }
  }
  for (const [service, ends] of ways) {
    const to = idOf('Service', service);
    for (const [kind, name] of ends) {
      const from = idOf(kind, name);
      if (placed.has(from) && placed.has(to)) lines.push({ from, to });
    }
  }
  for (const one of made) {
    const owner = placed.get(idOf(...one.owner)) ?? placed.get(idOf(...ownerOf(one.owner)));
    // A Pod of somebody else may have the same labels.
    if (owner) lines.push({ from: owner.id, to: put(one, owner.column + 1) });
  }
  for (const { kind, word, names } of relations.filter((one) => one.side === 'used'))
    for (const name of names) {
      const id = idOf(kind, name);
      if (!placed.has(id)) put({ kind, word, name }, COLUMNS.used);
      lines.push({ from: center, to: id });
    }
  const all = [...placed.values()];
  return laidOut(...(all.length > GROUPED_ABOVE ? grouped(all, lines) : ([all, lines] as const)));
}

export function idOf(kind: string, name: string): string {
  return `${kind}/${name}`;
}

/** Things of one kind, column and state as one, where they are many. */
function grouped(things: Placed[], lines: Line[]): readonly [Placed[], Line[]] {
  const keyOf = ({ kind, column, state }: Placed) => `${kind} ${column} ${state?.join(' ') ?? ''}`;
  const alike = new Map<string, Placed[]>();
  for (const thing of things) {
    const those = alike.get(keyOf(thing));
    if (those) those.push(thing);
    else alike.set(keyOf(thing), [thing]);
  }
  const out: Placed[] = [];
  const became = new Map<string, string>();
  for (const [key, those] of alike) {
    if (those.length <= ALIKE_MAX) out.push(...those);
    else {
      out.push({ ...those[0]!, id: key, name: '', count: those.length });
      for (const { id } of those) became.set(id, key);
    }
  }
  const seen = new Map<string, Line>();
  for (const { from, to } of lines) {
    const line = { from: became.get(from) ?? from, to: became.get(to) ?? to };
    seen.set(`${line.from} ${line.to}`, line);
  }
  return [out, [...seen.values()]];
}

/** Columns in the middle of each other; a thing stands by the highest that it hangs on, else as it came. */
function laidOut(things: readonly Placed[], lines: Line[]): Tree {
  const used = [...new Set(things.map((thing) => thing.column))].sort((a, b) => a - b);
  const height = Math.max(1, ...used.map((column) => things.filter((thing) => thing.column === column).length));
  const boxes = new Map<string, Box>();
  const place = (column: number, highest: (id: string) => number) => {
    const those = things.filter((thing) => thing.column === column);
    const by = new Map(those.map(({ id }) => [id, highest(id)]));
    those.sort((a, b) => by.get(a.id)! - by.get(b.id)!);
    const above = (height - those.length) / 2;
    those.forEach((thing, at) =>
      boxes.set(thing.id, { ...thing, column: used.indexOf(column), row: above + at, of: '' }),
    );
  };
  const rows = (ids: string[]) => Math.min(height, ...ids.map((id) => boxes.get(id)?.row ?? height));
  const before = used.filter((column) => column < OWN).reverse();
  place(OWN, () => 0);
  for (const column of before)
    place(column, (id) => rows(lines.filter((line) => line.from === id).map((line) => line.to)));
  for (const column of used.filter((one) => one > OWN))
    place(column, (id) => rows(lines.filter((line) => line.to === id).map((line) => line.from)));
  const names = new Map(things.map((thing) => [thing.id, `${thing.kind} ${thing.name}`.trim()]));
  for (const { from, to } of lines) {
    const box = boxes.get(to);
    if (box && !box.of) box.of = names.get(from) ?? '';
  }
  const sorted = [...boxes.values()].sort((a, b) => a.column - b.column || a.row - b.row);
  return { boxes: sorted, lines, columns: used.length, rows: height };
}

/** The box that an arrow key leads to: up and down in the column, left and right along the lines. */
export function beside({ boxes, lines }: Tree, id: string, key: string): string | undefined {
  const own = boxes.find((box) => box.id === id);
  if (!own) return undefined;
  const nearest = (found: Box[]) =>
    [...found].sort((a, b) => Math.abs(a.row - own.row) - Math.abs(b.row - own.row))[0]?.id;
  if (key === 'ArrowUp' || key === 'ArrowDown') {
    const down = key === 'ArrowDown';
    return nearest(boxes.filter((box) => box.column === own.column && (down ? box.row > own.row : box.row < own.row)));
  }
  if (key !== 'ArrowLeft' && key !== 'ArrowRight') return undefined;
  const column = own.column + (key === 'ArrowRight' ? 1 : -1);
  const there = boxes.filter((box) => box.column === column);
  const linked = there.filter((box) =>
    lines.some((line) => (line.from === id && line.to === box.id) || (line.to === id && line.from === box.id)),
  );
  return nearest(linked.length > 0 ? linked : there);
}
