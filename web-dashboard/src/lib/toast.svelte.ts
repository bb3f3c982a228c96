// The one sentence about what has just been done, and what is about to be done, with its way back, or under way.

import { Waiting, type Later, type Plan } from './later';

export interface Toast {
  text: string;
  kind: 'good' | 'bad';
}

const SHOWN_MS = 5000;
let shown = $state.raw<Toast | null>(null);
let waiting = $state.raw<Later[]>([]);
let timer = 0;
const later = new Waiting((all) => (waiting = all));

export const toast = {
  get shown(): Toast | null {
    return shown;
  },
  /** What is about to be done, or under way. */
  get waiting(): Later[] {
    return waiting;
  },
  /** What went wrong stays until somebody has read it. */
  show(next: Toast): void {
    clearTimeout(timer);
    shown = next;
    if (next.kind === 'good') timer = window.setTimeout(() => (shown = null), SHOWN_MS);
  },
  clear(): void {
    clearTimeout(timer);
    shown = null;
  },
  /** Does it after some time, with a way back until then. */
  later(plan: Omit<Plan, 'kept'>, ms: number): void {
    const kept = () => toast.show({ kind: 'good', text: `${plan.name} stays as it is.` });
    later.add({ ...plan, kept }, ms);
  },
};
