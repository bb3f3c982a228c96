//! Which PersistentVolume a claim stands for.
//!
//! A claim names its volume, and whoever makes a claim may write any name there. So the volume has to
//! name the claim, too: the control plane sees to that when it binds them. And the volume has to be
//! one that can be used on this node: a Pod that names its node has not asked the scheduler.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Api;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Volumes,
    places::{self, Place},
};
use crate::agent::{checkpoint::Asked, placement, spec::PodSpec};

/// What is kept of a claim: its volume, or why a Pod cannot have it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value")]
struct Kept(Result<PersistentVolume, String>);

impl TryFrom<Value> for Kept {
    type Error = serde_json::Error;

    fn try_from(file: Value) -> Result<Kept, serde_json::Error> {
        // As it is written now it has `Ok` or `Err`, which is no field of a volume's spec.
        if let Ok(said) = serde_json::from_value(file.clone()) {
            return Ok(Kept(said));
        }
        // An earlier agent has kept the spec alone, of whatever volume the claim named, and nothing
        // where the claim was not bound.
        let spec: Option<PersistentVolumeSpec> = serde_json::from_value(file)?;
        let Some(mut spec) = spec else {
            return Ok(Kept(Err("the claim was not bound when that was last known".to_owned())));
        };
        // It is not known whether a folder would still go with it.
        spec.persistent_volume_reclaim_policy = None;
        let name = spec.csi.as_ref().map(|csi| csi.volume_handle.clone());
        let metadata = ObjectMeta { name, ..ObjectMeta::default() };
        Ok(Kept(Ok(PersistentVolume { metadata, spec: Some(spec), status: None })))
    }
}

impl Volumes {
    /// Where the PersistentVolume of a claim is on this node.
    pub(super) async fn claim(&self, pod: &PodSpec, name: &str) -> Result<Place, String> {
        let key = format!("{}/{name}", pod.namespace);
        let mut said = None;
        let asked = async {
            // Three objects are large, and this is part of every preparation's future.
            let volume = Box::pin(self.bound(pod, name)).await?;
            said = Some(Timestamp::now());
            Ok::<_, kube::Error>(Kept(volume))
        };
        let Kept(volume) = self.objects.kept((Asked::Claims, &key), asked).await?;
        let mut place = places::of_volume(of_claim(volume?, &pod.namespace, name)?)?;
        if let Place::Local(folder) = &mut place {
            folder.owner.at = said;
        }
        Ok(place)
    }

    /// The volume of a claim, or why the Pod cannot have it. Either is kept for when the control plane
    /// is away: what it refused at last is not mounted then.
    async fn bound(
        &self,
        pod: &PodSpec,
        name: &str,
    ) -> Result<Result<PersistentVolume, String>, kube::Error> {
        let claims = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &pod.namespace);
        let claim = claims.get(name).await?;
        let named = match named(&claim) {
            Ok(named) => named,
            Err(why) => return Ok(Err(why)),
        };
        let volumes = Api::<PersistentVolume>::all(self.client.clone());
        let nodes = Api::<Node>::all(self.client.clone());
        // All has to be answered soon where an older answer is at hand, see `away`.
        let (volume, node) = tokio::try_join!(volumes.get(named), nodes.get(&pod.node))?;
        Ok(usable(&claim, volume, &placement::Place::of(&node)))
    }
}

/// The name of the volume that a claim is bound to.
fn named(claim: &PersistentVolumeClaim) -> Result<&str, String> {
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
    }
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
    let named = named.filter(|named| !named.is_empty() && phase == Some("Bound"));
    named.ok_or_else(|| format!("persistentvolumeclaim {name:?} is not bound"))
}

/// The volume, if it is bound to the claim and can be used on this node.
fn usable(
    claim: &PersistentVolumeClaim,
    mut volume: PersistentVolume,
    node: &placement::Place,
) -> Result<PersistentVolume, String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let spec = volume.spec.as_ref();
    let holder = spec.and_then(|spec| spec.claim_ref.as_ref()?.uid.as_deref());
    if holder.is_none() || holder != claim.metadata.uid.as_deref() {
        let claim = claim.metadata.name.as_deref().unwrap_or_default();
        return Err(format!(
            "persistentvolumeclaim {claim:?} names the PersistentVolume {name:?}, which is not \
             bound to it; let the claim name one that is free, or none"
        ));
    }
    let required = spec.and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
    if required.is_some_and(|required| !node.is_in(&required.node_selector_terms)) {
        return Err(format!(
            "the PersistentVolume {name:?} cannot be used on this node (its spec.nodeAffinity); \
             leave spec.nodeName of the Pod to the scheduler"
        ));
    }
    // Nobody reads it here, and it is long.
    volume.metadata.managed_fields = None;
    Ok(volume)
}

/// The volume, if it names the claim. All that is answered now does; what an earlier agent has kept
/// may be the volume of another tenant, of which nobody has looked whose it is.
fn of_claim(
    volume: PersistentVolume,
    namespace: &str,
    name: &str,
) -> Result<PersistentVolume, String> {
    let holder = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let ours = holder.is_some_and(|holder| {
        holder.namespace.as_deref() == Some(namespace) && holder.name.as_deref() == Some(name)
    });
    if !ours {
        return Err(format!("persistentvolumeclaim {name:?} is not bound"));
    }
    Ok(volume)
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering::Relaxed},
        },
        time::Duration,
    };

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Full;
    use kube::client::Body;
    use serde_json::json;
    use tokio::sync::Barrier;

    use super::*;
    use crate::agent::{
        spec,
        volumes::{
            local,
            tests::{silent, volumes},
        },
    };

    /// The volume that a Pod on the node `a` gets of a claim with these changes, or why it gets none.
    #[track_caller]
    fn check(claim_changes: &Value, volume_changes: &Value, expected: &str) {
        let mut claim = json!({
            "metadata": {"name": "data", "namespace": "shop", "uid": "u1"},
            "spec": {"volumeName": "v"}, "status": {"phase": "Bound"}});
        let mut volume = json!({
            "metadata": {"name": "v", "managedFields": [{"manager": "m"}]},
            "spec": {"claimRef": {"namespace": "shop", "name": "data", "uid": "u1"}}});
        json_patch(&mut claim, claim_changes);
        json_patch(&mut volume, volume_changes);
        let claim: PersistentVolumeClaim = serde_json::from_value(claim).expect("a claim");
        let volume: PersistentVolume = serde_json::from_value(volume).expect("a volume");
        let node = json!({"metadata": {"name": "a", "labels": {"host": "a"}}});
        let node: Node = serde_json::from_value(node).expect("a Node");
        let found = named(&claim).map(str::to_owned);
        let found = found.and_then(|_| usable(&claim, volume, &placement::Place::of(&node)));
        let text = match &found {
            Ok(volume) if volume.metadata.managed_fields.is_none() => "mounted",
            Ok(_) => "it is kept with all that it came with",
            Err(why) => why.as_str(),
        };
        assert!(text.contains(expected), "{text}");
        // It is kept as it is, for when the control plane is away.
        let found = Kept(found);
        let kept = serde_json::to_string(&found).expect("it is JSON");
        let read: Kept = serde_json::from_str(&kept).expect("read");
        assert_eq!(read, found);
    }

    /// Sets fields of the top's objects.
    fn json_patch(object: &mut Value, changes: &Value) {
        for (part, fields) in changes.as_object().into_iter().flatten() {
            for (field, value) in fields.as_object().into_iter().flatten() {
                object[part][field] = value.clone();
            }
        }
    }

    #[test]
    fn a_claim_gets_the_volume_that_is_bound_to_it() {
        let same = json!({});
        check(&same, &same, "mounted");
        check(&json!({"status": {"phase": "Pending"}}), &same, "\"data\" is not bound");
        check(&json!({"status": {"phase": "Lost"}}), &same, "\"data\" is not bound");
        check(&json!({"spec": {"volumeName": ""}}), &same, "\"data\" is not bound");
        let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        check(&deleted, &same, "\"data\" is being deleted");
        // Whoever may write the status of a claim has not bound it by that.
        let of = |uid: Value| json!({"spec": {"claimRef": {"name": "data", "uid": uid}}});
        check(&same, &of(json!("u2")), "\"v\", which is not bound to it");
        check(&same, &of(Value::Null), "\"v\", which is not bound to it");
        check(&same, &json!({"spec": {"claimRef": null}}), "\"v\", which is not bound to it");
        let nobody = json!({"metadata": {"uid": null}});
        check(&nobody, &of(Value::Null), "\"v\", which is not bound to it");
    }

    #[test]
    fn what_an_earlier_agent_has_kept_is_read() {
        let read = |file: Value| {
            let Kept(said) = serde_json::from_str(&file.to_string()).expect("read");
            said.and_then(places::of_volume)
        };
        let path = json!({"hostPath": {"path": "/srv/rows"}});
        assert_eq!(read(path), Ok(Place::Path("/srv/rows".into())));
        let local = json!({
            "csi": {"driver": "wherry.dev/local", "volumeHandle": "pvc-1"},
            "capacity": {"storage": "1Ki"}, "persistentVolumeReclaimPolicy": "Delete"});
        let Ok(Place::Local(folder)) = read(local) else { panic!("it is a folder") };
        assert_eq!((folder.handle.as_str(), folder.bytes), ("pvc-1", 1024));
        let owner = &folder.owner;
        assert_eq!((owner.volume.as_str(), owner.reclaimed, owner.at), ("pvc-1", false, None));
        let why = read(Value::Null).expect_err("there was none");
        assert!(why.contains("was not bound"), "{why}");
        assert!(serde_json::from_str::<Kept>("7").is_err());
    }

    /// A Pod of the namespace `b`.
    fn pod() -> Arc<PodSpec> {
        let pod = r#"{"metadata":{"name":"a","namespace":"b","uid":"u"},"spec":{"nodeName":"n",
            "containers":[{"name":"app","image":"i"}]}}"#;
        let pod = serde_json::from_str(pod).expect("a Pod");
        spec::read(pod).expect("a Pod of a node").0.spec
    }

    /// That agent has not looked whose the volume is that a claim names.
    #[tokio::test]
    async fn what_an_earlier_agent_has_kept_of_a_volume_of_others_is_not_mounted() {
        let disk = tempfile::tempdir().expect("a folder");
        let volumes = volumes(disk.path(), silent());
        let of = |namespace: &str, name: &str| {
            let holder = json!({"namespace": namespace, "name": name});
            json!({"hostPath": {"path": "/srv/rows"}, "claimRef": holder})
        };
        let kept = [
            ("own", of("b", "own")),
            ("foreign", of("a", "foreign")),
            ("other", of("b", "own")),
            ("free", json!({"hostPath": {"path": "/srv/rows"}})),
        ];
        for (name, spec) in kept {
            let key = format!("b/{name}");
            let keeping = volumes.objects.kept((Asked::Claims, &key), async { Ok(spec) });
            keeping.await.expect("kept");
        }
        let pod = pod();
        let own = volumes.claim(&pod, "own").await;
        assert_eq!(own, Ok(Place::Path("/srv/rows".into())));
        for name in ["foreign", "other", "free"] {
            let why = volumes.claim(&pod, name).await.expect_err("it is not its volume");
            assert_eq!(why, format!("persistentvolumeclaim {name:?} is not bound"));
        }
    }

    /// Three answers one after the other would each have a third of the time.
    #[tokio::test]
    async fn the_volume_and_the_node_are_asked_for_at_once() {
        let (together, away) = (Arc::new(Barrier::new(2)), Arc::new(AtomicBool::new(false)));
        let is_away = away.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (together, away) = (together.clone(), is_away.load(Relaxed));
            async move {
                if away {
                    std::future::pending::<()>().await;
                }
                let object = match request.uri().path().rsplit('/').next().unwrap_or_default() {
                    "data" => json!({
                        "metadata": {"name": "data", "namespace": "b", "uid": "u1"},
                        "spec": {"volumeName": "v"}, "status": {"phase": "Bound"}}),
                    "v" => json!({
                        "metadata": {"name": "v", "resourceVersion": "7"},
                        "spec": {"claimRef": {"namespace": "b", "name": "data", "uid": "u1"},
                            "csi": {"driver": "wherry.dev/local", "volumeHandle": "pvc-1"},
                            "capacity": {"storage": "1Ki"}}}),
                    _ => json!({"metadata": {"name": "n"}}),
                };
                if object["metadata"]["name"] != "data" {
                    together.wait().await;
                }
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(object.to_string()))))
            }
        });
        let disk = tempfile::tempdir().expect("a folder");
        let volumes = volumes(disk.path(), kube::Client::new(service, "default"));
        let pod = pod();
        let asked = async || {
            let asked = tokio::time::timeout(Duration::from_secs(20), volumes.claim(&pod, "data"));
            match asked.await.expect("both are asked for").expect("a place") {
                Place::Local(folder) => folder.owner,
                other => panic!("{other:?}"),
            }
        };
        let answered = asked().await;
        assert_eq!((answered.volume.as_str(), answered.revision), ("v", 7));
        assert!(answered.at.is_some(), "it has been seen");
        away.store(true, Relaxed);
        assert_eq!(asked().await, local::Owner { at: None, ..answered }, "it is what was kept");
    }

    #[test]
    fn a_volume_of_another_node_is_not_mounted() {
        let on = |host: &str| {
            let rule = json!({"key": "host", "operator": "In", "values": [host]});
            let terms = json!([{"matchExpressions": [rule]}]);
            json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}})
        };
        check(&json!({}), &on("a"), "mounted");
        check(&json!({}), &on("b"), "the PersistentVolume \"v\" cannot be used on this node");
    }
}
