// Which rows of a long list are drawn, in which elements, and which are asked of the server. Pure.
//
// There are as many elements as fit on the screen and a little more, and they stay: one whose row has left the screen at
// one end shows the row that comes in at the other. So scrolling makes and takes away nothing.

import type { Shown } from './window';

export interface Span {
  from: number;
  count: number;
}

/** Rows drawn above and below what is visible, so that scrolling finds them there. */
const MARGIN_ROWS = 8;
/** Elements made in one frame: a screen full of them in one piece would be felt on a slow machine. */
export const ROWS_A_FRAME = 16;
/** Windows begin at multiples of this, so that a small scroll asks for nothing. */
const STEP_ROWS = 20;
/** Screens asked for on each side of the visible one: some hundred milliseconds of a fast scroll. */
const SCREENS_AROUND = 2;
/** What the server sends of one list at a time. */
const WINDOW_MAX = 500;

/** How many elements there are. */
export function pool(height: number, row: number): number {
  return Math.ceil(height / row) + 1 + 2 * MARGIN_ROWS;
}

/** The rows to draw: as many wherever one is, if there are as many, and no more than the elements made so far. */
export function drawn(scrolled: number, height: number, row: number, all: number, made: number): Span {
  const count = Math.min(all, made, pool(height, row));
  const from = Math.floor(scrolled / row) - MARGIN_ROWS;
  return { from: Math.max(0, Math.min(from, all - count)), count };
}

/** The window to ask for: what is visible, and some screens on each side. */
export function wanted(scrolled: number, height: number, row: number): Span {
  const screen = Math.ceil(height / row) + 1;
  const first = Math.max(0, Math.floor(scrolled / row) - SCREENS_AROUND * screen);
  const from = Math.floor(first / STEP_ROWS) * STEP_ROWS;
  const count = Math.ceil(((2 * SCREENS_AROUND + 1) * screen + STEP_ROWS) / STEP_ROWS) * STEP_ROWS;
  return { from, count: Math.min(count, WINDOW_MAX) };
}

/** One element, and what it shows. */
export interface Slot {
  key: number;
  place: number;
  row: Shown | null;
  /** The row of its place has not come: what it shows is of another one, and is hidden. */
  blank: boolean;
  /** Its cells may flash: they have changed before somebody's eyes. */
  flashes: boolean;
}

/** What the elements show next. One that shows the same is the same value, so that nothing of it is drawn again. */
export function slots(
  before: ReadonlyMap<number, Slot>,
  { from, count }: Span,
  pool: number,
  rowAt: (place: number) => Shown | undefined,
): Map<number, Slot> {
  const out: Slot[] = [];
  for (let place = from; place < from + count; place++) {
    const key = place % pool;
    const held = before.get(key);
    const found = rowAt(place);
    const row = found ?? held?.row ?? null;
    const blank = found === undefined;
    if (held && held.place === place && held.row === row && held.blank === blank) out.push(held);
    else {
      const flashes = held !== undefined && !held.blank && held.row?.uid === row?.uid && held.place === place;
      out.push({ key, place, row, blank, flashes });
    }
  }
  out.sort((a, b) => a.key - b.key);
  return new Map(out.map((slot) => [slot.key, slot]));
}
