// What somebody has typed and not applied yet, by the uid of its object: a look at another page loses nothing of it.

import type { KubeObject } from './api';

export interface Draft {
  /** What the text was made from. */
  base: KubeObject;
  text: string;
}
export const drafts = new Map<string, Draft>();
let whose = '';

/** Who signs in finds their own: what somebody else has typed goes. */
export function keepFor(user: string): void {
  if (user !== whose) drafts.clear();
  whose = user;
}
