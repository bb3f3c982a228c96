// What the pages are shown with: one of everything that people make, some of it broken on purpose.

const deployment = (name, replicas, image) => `---
apiVersion: apps/v1
kind: Deployment
metadata: {name: ${name}, namespace: shop}
spec:
  replicas: ${replicas}
  selector: {matchLabels: {app: ${name}}}
  template:
    metadata: {labels: {app: ${name}}}
    spec: {containers: [{name: ${name}, image: ${image}}]}
`;
export const FIXTURES = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop}
data: {greeting: hello, "long.txt": "one\\ntwo\\nthree\\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: credentials, namespace: shop}
stringData: {password: swordfish}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec:
  replicas: 3
  selector: {matchLabels: {app: cart}}
  template:
    metadata: {labels: {app: cart}}
    spec:
      containers:
        - name: cart
          image: hello-http:dev
          ports: [{containerPort: 8080}]
          env:
            - {name: GREETING, valueFrom: {configMapKeyRef: {name: settings, key: greeting}}}
            - {name: PASSWORD, valueFrom: {secretKeyRef: {name: credentials, key: password}}}
            - {name: MODE, value: careful}
          resources: {limits: {cpu: 500m, memory: 64Mi}}
          volumeMounts: [{name: settings, mountPath: /settings, readOnly: true}]
      volumes: [{name: settings, configMap: {name: settings}}]
${deployment('idle', 0, 'hello-http:dev')}${deployment('broken', 2, 'no-such-image:1')}---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: watcher, namespace: shop}
spec:
  selector: {matchLabels: {app: watcher}}
  template:
    metadata: {labels: {app: watcher}}
    spec: {containers: [{name: watcher, image: hello-http:dev}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: cart, namespace: shop}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: cart}
  minReplicas: 3
  maxReplicas: 6
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 60}}}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: cart, namespace: shop}
spec:
  rules:
    - host: cart.example.com
      http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: cart, port: {number: 80}}}}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly, namespace: shop}
spec:
  schedule: "0 3 * * *"
  jobTemplate:
    spec:
      template:
        spec: {restartPolicy: Never, containers: [{name: nightly, image: batch:dev}]}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: boats, singular: boat, kind: Boat}
  versions:
    - name: v1
      served: true
      storage: true
      additionalPrinterColumns: [{name: Seats, type: integer, jsonPath: .spec.seats}]
      schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {seats: {type: integer}}}}}}
`;
export const BOAT = `
apiVersion: example.com/v1
kind: Boat
metadata: {name: dory, namespace: shop}
spec: {seats: 3}
`;
/** Somebody who may read two namespaces and nothing else. */
export const READER = `
apiVersion: v1
kind: Namespace
metadata: {name: kiosk}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: shop}
${['shop', 'kiosk']
  .map(
    (namespace) => `---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: ${namespace}}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: reader, namespace: shop}]
`,
  )
  .join('')}`;
