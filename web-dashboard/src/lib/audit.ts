// The audit log's newest events, as `/wherry/v1/audit` tells them: who did what, in a few words. Pure but for `fetchAudit`.

import { call } from './api';

export interface AuditEvent {
  auditID: string;
  verb: string;
  requestURI: string;
  requestReceivedTimestamp: string;
  user?: { username?: string };
  impersonatedUser?: { username?: string };
  objectRef?: Partial<Record<'resource' | 'namespace' | 'name' | 'apiGroup' | 'subresource', string>>;
  responseStatus?: { code?: number };
}

export async function fetchAudit(count: number): Promise<AuditEvent[]> {
  return (await call<{ events: AuditEvent[] }>('/wherry/v1/audit', { query: { count: String(count) } })).events;
}

/** Who it was: `anna`, or `anna as system:admin`. */
export function whoOf({ user, impersonatedUser }: AuditEvent): string {
  const who = user?.username || 'nobody known';
  return impersonatedUser?.username ? `${who} as ${impersonatedUser.username}` : who;
}

/** What it was about: `deployments.apps/scale cart in shop`, or a path. */
export function whatOf({ objectRef, requestURI }: AuditEvent): string {
  if (!objectRef?.resource) return requestURI.split('?')[0]!;
  const { resource, apiGroup, subresource, name, namespace } = objectRef;
  const kind = `${resource}${apiGroup ? `.${apiGroup}` : ''}${subresource ? `/${subresource}` : ''}`;
  return `${kind}${name ? ` ${name}` : ''}${namespace ? ` in ${namespace}` : ''}`;
}
