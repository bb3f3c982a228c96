// The one sentence about what has just been done, and the way back while there is one.

export interface Toast {
  text: string;
  kind: 'good' | 'bad';
  /** Undoes it; until then nothing has happened. */
  back?: { label: string; until: number; run: () => void };
}

const SHOWN_MS = 5000;
let shown = $state.raw<Toast | null>(null);
let timer = 0;

export const toast = {
  get shown(): Toast | null {
    return shown;
  },
  show(next: Toast, ms = SHOWN_MS): void {
    clearTimeout(timer);
    shown = next;
    timer = window.setTimeout(() => (shown = null), ms);
  },
  clear(): void {
    clearTimeout(timer);
    shown = null;
  },
};
