// Why an autoscaler wants as many Pods as it does, from its own status, in sentences. Pure.

import { at, type KubeObject } from './api';
import { counted } from './format';

interface Amount {
  averageUtilization?: number;
  averageValue?: string;
  value?: string;
}
interface Metric {
  type: string;
  resource?: { name: string; target?: Amount; current?: Amount };
  containerResource?: { name: string; container: string; target?: Amount; current?: Amount };
  pods?: { metric: { name: string }; target?: Amount; current?: Amount };
  object?: { metric: { name: string }; describedObject?: { name: string }; target?: Amount; current?: Amount };
  external?: { metric: { name: string }; target?: Amount; current?: Amount };
}
interface Condition {
  type: string;
  status: string;
  reason?: string;
  message?: string;
}

function nameOf(metric: Metric): string {
  const { resource, containerResource, pods, object, external } = metric;
  const words: Record<string, string> = { cpu: 'Processor', memory: 'Memory' };
  if (resource) return words[resource.name] ?? resource.name;
  if (containerResource)
    return `${words[containerResource.name] ?? containerResource.name} of ${containerResource.container}`;
  return pods?.metric.name ?? object?.metric.name ?? external?.metric.name ?? metric.type;
}

function amountsOf(metric: Metric | undefined): { target?: Amount | undefined; current?: Amount | undefined } {
  return metric?.resource ?? metric?.containerResource ?? metric?.pods ?? metric?.object ?? metric?.external ?? {};
}

function told(amount: Amount | undefined): string {
  if (!amount) return '';
  if (amount.averageUtilization !== undefined) return `${amount.averageUtilization} % of what Pods ask for`;
  if (amount.averageValue !== undefined) return `${amount.averageValue} a Pod`;
  return amount.value ?? '';
}

/** Each metric: what is measured, and the goal. */
export function metricsOf(autoscaler: KubeObject): string[] {
  const current = at<Metric[]>(autoscaler, 'status.currentMetrics') ?? [];
  return (at<Metric[]>(autoscaler, 'spec.metrics') ?? []).map((metric) => {
    const name = nameOf(metric);
    const now = told(amountsOf(current.find((one) => nameOf(one) === name)).current);
    const goal = told(amountsOf(metric).target);
    return now === '' ? `${name} is not measured yet; the goal is ${goal}.` : `${name} is at ${now}; the goal is ${goal}.`;
  });
}

/** The decision, and what stands in its way, in the controller's own words. */
export function decisionOf(autoscaler: KubeObject): string[] {
  const now = at<number>(autoscaler, 'status.currentReplicas') ?? 0;
  const wanted = at<number>(autoscaler, 'status.desiredReplicas') ?? 0;
  const least = at<number>(autoscaler, 'spec.minReplicas') ?? 1;
  const most = at<number>(autoscaler, 'spec.maxReplicas') ?? 0;
  const first =
    wanted === now
      ? `It keeps ${counted(now, 'Pod')}, of ${least} to ${most}.`
      : `It goes from ${now} to ${counted(wanted, 'Pod')}, of ${least} to ${most}.`;
  const said = (at<Condition[]>(autoscaler, 'status.conditions') ?? [])
    // That it is able is no news; that it is limited is.
    .filter(({ type, status }) => (type === 'ScalingLimited') === (status === 'True'))
    .map(({ message }) => sentence(message ?? ''));
  return [first, ...said.filter((one) => one !== '')];
}

function sentence(text: string): string {
  const trimmed = text.trim();
  if (trimmed === '') return '';
  return `${trimmed.charAt(0).toUpperCase()}${trimmed.slice(1)}${/[.!?]$/.test(trimmed) ? '' : '.'}`;
}

/** The autoscalers that act on an object. */
export function actingOn(autoscalers: KubeObject[], kind: string, name: string): KubeObject[] {
  return autoscalers.filter((one) => {
    const target = at<{ kind: string; name: string }>(one, 'spec.scaleTargetRef');
    return target?.kind === kind && target.name === name;
  });
}
