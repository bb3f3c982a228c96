// What programs do with the official JavaScript client: prints one line for each thing that it has seen.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const require = createRequire(process.argv[2] + "/");
const k8s = require("@kubernetes/client-node");

const namespace = "javascript";
const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);
const custom = config.makeApiClient(k8s.CustomObjectsApi);
const objects = k8s.KubernetesObjectApi.makeApiClient(config);

const says = (what, value) => console.log(`${what}: ${typeof value === "string" ? value : JSON.stringify(value)}`);
const refused = async (what, call) => {
  try {
    await call();
    says(what, "was not refused");
  } catch (error) {
    const status = typeof error.body === "string" ? JSON.parse(error.body) : error.body;
    says(what, `${error.code} ${status.reason} ${status.message}`);
  }
};
/** Resolves when `step` has been told what it waits for. */
const until = () => {
  let resolve;
  const done = new Promise((inner) => (resolve = inner));
  return { done, resolve };
};

await core.createNamespace({ body: { metadata: { name: namespace } } });

// Create, get, replace; bodies carry no kind.
const made = await core.createNamespacedConfigMap({ namespace, body: { metadata: { name: "m" }, data: { a: "1" } } });
says("created", made.data);
made.data.a = "2";
says("replaced", (await core.replaceNamespacedConfigMap({ name: "m", namespace, body: made })).data);
await refused("stale", () => core.replaceNamespacedConfigMap({ name: "m", namespace, body: made }));
await refused("missing", () => core.readNamespacedConfigMap({ name: "none", namespace }));

// Patches.
const typed = (type) => k8s.setHeaderOptions("Content-Type", type);
const merge = await core.patchNamespacedConfigMap(
  { name: "m", namespace, body: { data: { b: "3" } } },
  typed(k8s.PatchStrategy.MergePatch),
);
says("merge", merge.data);
const removal = [{ op: "remove", path: "/data/a" }];
const json = await core.patchNamespacedConfigMap(
  { name: "m", namespace, body: removal },
  typed(k8s.PatchStrategy.JsonPatch),
);
says("json patch", json.data);

// An informer: lists, watches, and goes on from the last event.
const informer = k8s.makeInformer(config, `/api/v1/namespaces/${namespace}/configmaps`, () =>
  core.listNamespacedConfigMap({ namespace }),
);
const seen = [];
const gone = until();
for (const verb of ["add", "update", "delete"]) {
  informer.on(verb, (object) => {
    if (object.metadata.name !== "w") return;
    seen.push(verb);
    if (verb === "delete") gone.resolve();
  });
}
const listening = until();
informer.on("connect", listening.resolve);
informer.on("error", (error) => {
  if (!seen.includes("delete")) says("informer failed", String(error));
});
await informer.start();
await listening.done;
await core.createNamespacedConfigMap({ namespace, body: { metadata: { name: "w" } } });
await core.patchNamespacedConfigMap(
  { name: "w", namespace, body: { data: { x: "y" } } },
  typed(k8s.PatchStrategy.StrategicMergePatch),
);
await core.deleteNamespacedConfigMap({ name: "w", namespace });
await gone.done;
await informer.stop();
says("informed", seen);

// Pages.
for (let number = 0; number < 25; number++) {
  const name = `p-${String(number).padStart(2, "0")}`;
  await core.createNamespacedSecret({ namespace, body: { metadata: { name }, stringData: { k: "v" } } });
}
let [pages, token] = [0, undefined];
const names = new Set();
const versions = new Set();
do {
  const page = await core.listNamespacedSecret({ namespace, limit: 10, _continue: token });
  pages += 1;
  token = page.metadata._continue;
  versions.add(page.metadata.resourceVersion);
  for (const item of page.items) names.add(item.metadata.name);
} while (token);
says("pages", `${pages} with ${names.size} names at ${versions.size} version`);

// Server-side apply, with a conflict.
const map = (a) => ({ apiVersion: "v1", kind: "ConfigMap", metadata: { name: "s", namespace }, data: { a } });
const apply = (a, manager, force) =>
  objects.patch(map(a), undefined, undefined, manager, force, k8s.PatchStrategy.ServerSideApply);
says("applied", (await apply("1", "javascript")).data);
await refused("conflict", () => apply("2", "other"));
says("forced", (await apply("2", "other", true)).data);

// Workloads: a watch by hand.
const labels = { app: "web" };
await apps.createNamespacedDeployment({
  namespace,
  body: {
    metadata: { name: "web" },
    spec: {
      replicas: 2,
      selector: { matchLabels: labels },
      template: { metadata: { labels }, spec: { containers: [{ name: "c", image: "hello-http:dev" }] } },
    },
  },
});
const ready = until();
const watch = await new k8s.Watch(config).watch(
  `/apis/apps/v1/namespaces/${namespace}/deployments`,
  { fieldSelector: "metadata.name=web", allowWatchBookmarks: true },
  (type, object) => {
    if (object.status?.readyReplicas === 2) ready.resolve();
  },
  () => {},
);
await ready.done;
watch.abort();
says("ready", (await apps.readNamespacedDeployment({ name: "web", namespace })).status.readyReplicas);
let scaled;
while (!scaled) {
  const scale = await apps.readNamespacedDeploymentScale({ name: "web", namespace });
  scale.spec.replicas = 1;
  const replaced = apps.replaceNamespacedDeploymentScale({ name: "web", namespace, body: scale });
  // A controller may have written the Deployment's status in between.
  scaled = await replaced.catch((error) => {
    if (error.code !== 409) throw error;
  });
}
says("scaled", scaled.spec);

// Custom resources.
const extensions = config.makeApiClient(k8s.ApiextensionsV1Api);
const definition = k8s.loadYaml(readFileSync(process.argv[3], "utf8"));
await extensions.createCustomResourceDefinition({ body: definition });
const of = { group: "example.com", version: "v1", namespace, plural: "widgets" };
for (let established = false; !established; ) {
  const { status } = await extensions.readCustomResourceDefinition({ name: "widgets.example.com" });
  established = status?.conditions?.some(({ type, status }) => type === "Established" && status === "True");
}
const widget = { apiVersion: "example.com/v1", kind: "Widget", metadata: { name: "w" }, spec: { size: 2 } };
says("custom", (await custom.createNamespacedCustomObject({ ...of, body: widget })).spec);
await refused("too large", () =>
  custom.patchNamespacedCustomObject(
    { ...of, name: "w", body: { spec: { size: 11 } } },
    typed(k8s.PatchStrategy.MergePatch),
  ),
);
const status = await custom.patchNamespacedCustomObjectStatus(
  { ...of, name: "w", body: { status: { size: 1 } } },
  typed(k8s.PatchStrategy.MergePatch),
);
says("status", status.status);
await custom.deleteNamespacedCustomObject({ ...of, name: "w" });
says("left", (await custom.listNamespacedCustomObject(of)).items.length);

// Deletion with options, of one and of all.
await apps.deleteNamespacedDeployment({ name: "web", namespace, body: { propagationPolicy: "Foreground" } });
await core.deleteCollectionNamespacedSecret({ namespace });
says("secrets left", (await core.listNamespacedSecret({ namespace })).items.length);
await extensions.deleteCustomResourceDefinition({ name: "widgets.example.com" });
await core.deleteNamespace({ name: namespace });
