// What the conditions of an object mean. Pure.

import type { Health } from './format';

export interface Condition {
  type: string;
  status: string;
  reason?: string;
  message?: string;
  lastTransitionTime?: string;
}
/** Conditions whose being true is bad news, and those whose being true is worth a look; of all others it is good news. */
const BAD = /Pressure$|Failure|Failed|Unavailable|Stalled|Conflict|Violation/;
const NOTED = /Remaining$|^(DisruptionTarget|NonStructuralSchema|ScalingLimited|Suspended|Terminating)$/;

export function healthOf({ type, status }: Condition): Health {
  if (status === 'Unknown') return 'warn';
  const isBad = BAD.test(type);
  if ((status === 'True') !== (isBad || NOTED.test(type))) return 'good';
  return isBad ? 'bad' : 'warn';
}
