// Which rows of a long list are drawn, and which are asked of the server. Pure.

export interface Span {
  from: number;
  count: number;
}

/** Rows drawn above and below what is visible, so that scrolling finds them there. */
const MARGIN_ROWS = 12;
/** Windows begin at multiples of this, so that a small scroll asks for nothing. */
const STEP_ROWS = 20;
/** What the server sends of one list at a time. */
const WINDOW_MAX = 500;

/** The rows to draw. */
export function drawn(scrolled: number, height: number, row: number, all: number): Span {
  const first = Math.max(0, Math.floor(scrolled / row) - MARGIN_ROWS);
  const last = Math.min(all, Math.ceil((scrolled + height) / row) + MARGIN_ROWS);
  return { from: Math.min(first, all), count: Math.max(0, last - first) };
}

/** The window to ask for: what is visible, and a screen on each side. */
export function wanted(scrolled: number, height: number, row: number): Span {
  const screen = Math.ceil(height / row) + 1;
  const first = Math.max(0, Math.floor(scrolled / row) - screen);
  const from = Math.floor(first / STEP_ROWS) * STEP_ROWS;
  const count = Math.ceil((3 * screen + STEP_ROWS) / STEP_ROWS) * STEP_ROWS;
  return { from, count: Math.min(count, WINDOW_MAX) };
}
