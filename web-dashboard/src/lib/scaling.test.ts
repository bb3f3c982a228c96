import { expect, test } from 'vitest';
import { actingOn, decisionOf, metricsOf } from './scaling';

const autoscaler = {
  metadata: { name: 'cart' },
  spec: {
    scaleTargetRef: { kind: 'Deployment', name: 'cart' },
    minReplicas: 2,
    maxReplicas: 5,
    metrics: [
      { type: 'Resource', resource: { name: 'cpu', target: { averageUtilization: 60 } } },
      { type: 'Pods', pods: { metric: { name: 'requests' }, target: { averageValue: '10' } } },
    ],
  },
  status: {
    currentReplicas: 2,
    desiredReplicas: 5,
    currentMetrics: [{ type: 'Resource', resource: { name: 'cpu', current: { averageUtilization: 240 } } }],
    conditions: [
      { type: 'AbleToScale', status: 'True', message: 'the target can be scaled' },
      { type: 'ScalingActive', status: 'False', message: 'the metric requests is not known' },
      { type: 'ScalingLimited', status: 'True', message: 'the count is at most 5' },
    ],
  },
};

test('what is measured stands beside the goal', () => {
  expect(metricsOf(autoscaler)).toEqual([
    'Processor is at 240 % of what Pods ask for; the goal is 60 % of what Pods ask for.',
    'requests is not measured yet; the goal is 10 a Pod.',
  ]);
});

test('a decision is told with what stands in its way', () => {
  expect(decisionOf(autoscaler)).toEqual([
    'It goes from 2 to 5 Pods, of 2 to 5.',
    'The metric requests is not known.',
    'The count is at most 5.',
  ]);
  expect(actingOn([autoscaler], 'Deployment', 'cart')).toHaveLength(1);
  expect(actingOn([autoscaler], 'StatefulSet', 'cart')).toHaveLength(0);
});
