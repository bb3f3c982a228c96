"""What programs do with the official Python client: prints one line for each thing that it has seen."""

import sys
import threading

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException

NAMESPACE = "kinds"


def says(what, value):
    print(f"{what}: {value}", flush=True)


def refused(what, call):
    """The Status of a call that must be refused."""
    try:
        call()
        says(what, "was not refused")
    except ApiException as error:
        import json

        status = json.loads(error.body)
        says(what, f"{error.status} {status['reason']} {status['message']}")


def deployment(name, replicas):
    labels = {"app": name}
    container = client.V1Container(name="c", image="hello-http:dev")
    return client.V1Deployment(
        metadata=client.V1ObjectMeta(name=name),
        spec=client.V1DeploymentSpec(
            replicas=replicas,
            selector=client.V1LabelSelector(match_labels=labels),
            template=client.V1PodTemplateSpec(
                metadata=client.V1ObjectMeta(labels=labels),
                spec=client.V1PodSpec(containers=[container]),
            ),
        ),
    )


def main():
    config.load_kube_config()
    core, apps = client.CoreV1Api(), client.AppsV1Api()
    says("version", client.VersionApi().get_code().minor)
    # Discovery as generated: with a slash behind every path.
    preferred = client.AppsApi().get_api_group().preferred_version.group_version
    kinds = sorted(row.name for row in apps.get_api_resources().resources)
    says("discovered", f"{client.CoreApi().get_api_versions().versions} {preferred} {kinds[0]}")
    core.create_namespace({"metadata": {"name": NAMESPACE}})

    # Create, get, replace, delete; bodies carry no kind.
    made = core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "m"}, "data": {"a": "1"}})
    says("created", made.data)
    made.data["a"] = "2"
    says("replaced", core.replace_namespaced_config_map("m", NAMESPACE, made).data)
    refused("stale", lambda: core.replace_namespaced_config_map("m", NAMESPACE, made))
    refused("again", lambda: core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "m"}}))

    # Patches: strategic by default, JSON patch for a list, merge by name.
    patched = core.patch_namespaced_config_map("m", NAMESPACE, {"data": {"b": "3"}})
    says("strategic", dict(sorted(patched.data.items())))
    patch = [{"op": "remove", "path": "/data/a"}]
    says("json patch", core.patch_namespaced_config_map("m", NAMESPACE, patch).data)

    # Workloads: status, scale, and waiting by a watch.
    apps.create_namespaced_deployment(NAMESPACE, deployment("web", 2))
    for event in watch.Watch().stream(
        apps.list_namespaced_deployment, NAMESPACE, field_selector="metadata.name=web", timeout_seconds=180
    ):
        if event["object"].status.ready_replicas == 2:
            says("ready", event["object"].status.ready_replicas)
            break
    scaled = apps.patch_namespaced_deployment_scale("web", NAMESPACE, {"spec": {"replicas": 1}})
    says("scale", f"{scaled.kind} {scaled.spec.replicas} {scaled.status.selector}")
    named = {"spec": {"template": {"spec": {"containers": [{"name": "c", "env": [{"name": "A", "value": "1"}]}]}}}}
    container = apps.patch_namespaced_deployment("web", NAMESPACE, named).spec.template.spec.containers[0]
    says("merged by name", f"{container.image} {container.env[0].name}")

    # A watch from a list: no gap, no repetition; the client parses versions as numbers.
    listed = core.list_namespaced_config_map(NAMESPACE)
    seen, started = [], threading.Event()

    def follow():
        stream = watch.Watch().stream(
            core.list_namespaced_config_map,
            NAMESPACE,
            resource_version=listed.metadata.resource_version,
            timeout_seconds=180,
        )
        started.set()
        for event in stream:
            # What a controller makes in a new namespace may come late.
            if event["object"].metadata.name == "kube-root-ca.crt":
                continue
            seen.append((event["type"], event["object"].metadata.name))
            if event["type"] == "DELETED":
                return

    follower = threading.Thread(target=follow)
    follower.start()
    started.wait()
    core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "w"}})
    core.patch_namespaced_config_map("w", NAMESPACE, {"data": {"x": "y"}})
    core.delete_namespaced_config_map("w", NAMESPACE)
    follower.join()
    says("watched", seen)

    # Pages.
    for number in range(25):
        core.create_namespaced_secret(NAMESPACE, {"metadata": {"name": f"p-{number:02}"}, "stringData": {"k": "v"}})
    pages, token, names, versions = 0, None, [], set()
    while pages == 0 or token:
        page = core.list_namespaced_secret(NAMESPACE, limit=10, _continue=token)
        pages, token = pages + 1, page.metadata._continue
        names += [item.metadata.name for item in page.items]
        versions.add(page.metadata.resource_version)
    says("pages", f"{pages} with {len(set(names))} names at {len(versions)} version")
    refused("bad token", lambda: core.list_namespaced_secret(NAMESPACE, limit=10, _continue="none"))
    says("selected", len(core.list_namespaced_secret(NAMESPACE, field_selector="metadata.name=p-07").items))

    # Server-side apply, by the dynamic client, which reads the older discovery.
    finder = dynamic.DynamicClient(client.ApiClient(), cache_file=None)
    maps = finder.resources.get(api_version="v1", kind="ConfigMap")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "s"}, "data": {"a": "1", "b": "1"}}
    maps.server_side_apply(body=body, name="s", namespace=NAMESPACE, field_manager="python")
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "s"}, "data": {"a": "2"}}
    try:
        maps.server_side_apply(body=other, name="s", namespace=NAMESPACE, field_manager="other")
        says("conflict", "none")
    except ApiException as error:
        says("conflict", f"{error.status} {error.summary() if hasattr(error, 'summary') else error.reason}")
    forced = maps.server_side_apply(
        body=other, name="s", namespace=NAMESPACE, field_manager="other", force_conflicts=True
    )
    says("forced", forced.data.to_dict())
    deployments = finder.resources.get(api_version="apps/v1", kind="Deployment")
    says("dynamic", deployments.get(name="web", namespace=NAMESPACE).spec.replicas)

    # Custom resources.
    extensions, custom = client.ApiextensionsV1Api(), client.CustomObjectsApi()
    utils.create_from_yaml(client.ApiClient(), sys.argv[1])
    for event in watch.Watch().stream(
        extensions.list_custom_resource_definition, field_selector="metadata.name=widgets.example.com"
    ):
        conditions = event["object"].status and event["object"].status.conditions or []
        if any(c.type == "Established" and c.status == "True" for c in conditions):
            break
    of_widgets = ("example.com", "v1", NAMESPACE, "widgets")
    widget = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": 2}}
    made = custom.create_namespaced_custom_object(*of_widgets, widget)
    says("custom", made["spec"])
    says("patched", custom.patch_namespaced_custom_object(*of_widgets, "w", {"spec": {"size": 3}})["spec"])
    status = custom.patch_namespaced_custom_object_status(*of_widgets, "w", {"status": {"size": 1}})
    says("status", status["status"])
    says("listed", len(custom.list_namespaced_custom_object(*of_widgets)["items"]))
    wrong = {"spec": {"size": 0}}
    refused("too small", lambda: custom.patch_namespaced_custom_object(*of_widgets, "w", wrong))
    custom.delete_namespaced_custom_object(*of_widgets, "w")
    refused("gone", lambda: custom.get_namespaced_custom_object(*of_widgets, "w"))

    # One of every kind, made and read as what the client's types require of it.
    utils.create_from_yaml(client.ApiClient(), sys.argv[2], namespace=NAMESPACE)
    read = 0
    # The client cannot read events.k8s.io: an event without a time of its own is one of the older form.
    unreadable = ("EventsV1Api",)
    named = (name for name in dir(client) if name.endswith("V1Api") or name == "AutoscalingV2Api")
    for api in sorted(set(named) - set(unreadable)):
        calls = getattr(client, api)()
        for name in dir(calls):
            if name.startswith("list_") and not name.endswith("_with_http_info") and "namespaced" not in name:
                try:
                    read += len(getattr(calls, name)(limit=100).items) > 0
                except ApiException as error:
                    says(name, error.status)
    says("kinds read", read)

    # Access, tokens, a review.
    review = client.V1SelfSubjectAccessReview(
        spec=client.V1SelfSubjectAccessReviewSpec(
            resource_attributes=client.V1ResourceAttributes(verb="delete", resource="pods", namespace=NAMESPACE)
        )
    )
    says("may", client.AuthorizationV1Api().create_self_subject_access_review(review).status.allowed)
    request = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[]))
    token = core.create_namespaced_service_account_token("default", NAMESPACE, request).status.token
    reviewed = client.AuthenticationV1Api().create_token_review({"spec": {"token": token}})
    says("token", reviewed.status.user.username)

    # Deletion with a body, of one and of all.
    options = client.V1DeleteOptions(propagation_policy="Foreground")
    apps.delete_namespaced_deployment("web", NAMESPACE, body=options)
    says("deleted", core.delete_collection_namespaced_secret(NAMESPACE).kind)
    says("left", len(core.list_namespaced_secret(NAMESPACE).items))
    extensions.delete_custom_resource_definition("widgets.example.com")
    core.delete_namespace(NAMESPACE)


main()
