// One drawing a frame: whatever comes between two frames is put on the screen with the next one, all of it at once.

const due = new Set<() => void>();
let frame = 0;

/** Draws with the next frame; asked for several times before that, once. */
export function withFrame(draw: () => void): void {
  due.add(draw);
  frame ||= requestAnimationFrame(all);
}

/** Draws it no more. */
export function forget(draw: () => void): void {
  due.delete(draw);
}

function all(): void {
  frame = 0;
  const now = [...due];
  due.clear();
  for (const draw of now) draw();
}
