// Which Pods belong to an object, as the selectors that a list takes. Pure.
import { at, type KubeObject } from './api';
import type { Kind } from './kinds';

export interface Selection {
  namespaces: string[];
  labels?: string;
  fields?: string;
}

interface Typed {
  matchLabels?: Record<string, string>;
  matchExpressions?: { key: string; operator: string; values?: string[] }[];
}

/** A label selector in its text form. */
export function text(selector: Typed): string {
  const equal = Object.entries(selector.matchLabels ?? {}).map(([key, value]) => `${key}=${value}`);
  const others = (selector.matchExpressions ?? []).map(({ key, operator, values = [] }) => {
    if (operator === 'Exists') return key;
    if (operator === 'DoesNotExist') return `!${key}`;
    return `${key} ${operator === 'In' ? 'in' : 'notin'} (${values.join(',')})`;
  });
  return [...equal, ...others].join(',');
}

/** The Pods of an object; null if it selects none. */
export function podsOf(kind: Kind, object: KubeObject): Selection | null {
  const namespaces = object.metadata.namespace ? [object.metadata.namespace] : [];
  if (kind.resource === 'nodes') return { namespaces, fields: `spec.nodeName=${object.metadata.name}` };
  if (kind.resource === 'pods') return { namespaces, fields: `metadata.name=${object.metadata.name}` };
  if (kind.resource === 'services') {
    const labels = at<Record<string, string>>(object, 'spec.selector');
    return labels && Object.keys(labels).length > 0
      ? { namespaces, labels: text({ matchLabels: labels }) }
      : null;
  }
  const selector = at<Typed>(object, 'spec.selector');
  return selector ? { namespaces, labels: text(selector) } : null;
}
