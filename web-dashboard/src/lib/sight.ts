// Tabs of which more are there than fit on a phone.

/** Brings the one that is shown into sight; to be attached to it. */
export function inSight(tab: HTMLElement): void {
  tab.scrollIntoView({ block: 'nearest', inline: 'center' });
}
