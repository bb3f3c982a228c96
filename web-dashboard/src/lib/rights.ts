// Whether the person may do something, asked of the server as kubectl does (`auth can-i`), and kept for a while.
import { call } from './api';
import type { Right } from './actions';

const KEPT_MS = 30_000;
const kept = new Map<string, { at: number; answer: Promise<boolean> }>();

export function may(right: Right): Promise<boolean> {
  const key = JSON.stringify(right);
  const found = kept.get(key);
  if (found && Date.now() - found.at < KEPT_MS) return found.answer;
  const answer = ask(right);
  kept.set(key, { at: Date.now(), answer });
  return answer;
}

/** Those of some rights that the person does not have; what cannot be found out is tried. */
export async function lacking(rights: Right[]): Promise<Right[]> {
  const answers = await Promise.all(rights.map((right) => may(right).catch(() => true)));
  return rights.filter((_, at) => !answers[at]);
}

async function ask({ verb, group, resource, part = '', namespace = '', name = '' }: Right): Promise<boolean> {
  const resourceAttributes = { verb, group, resource, subresource: part, namespace, name };
  const review = await call<{ status: { allowed: boolean } }>(
    '/apis/authorization.k8s.io/v1/selfsubjectaccessreviews',
    {
      method: 'POST',
      body: {
        apiVersion: 'authorization.k8s.io/v1',
        kind: 'SelfSubjectAccessReview',
        spec: { resourceAttributes },
      },
    },
  );
  return review.status.allowed;
}

/** The right's name as people say it: `patch deployments.apps/scale in shop`. */
export function named({ verb, group, resource, part, namespace }: Right): string {
  return `${verb} ${resource}${group ? `.${group}` : ''}${part ? `/${part}` : ''}${namespace ? ` in ${namespace}` : ''}`;
}
