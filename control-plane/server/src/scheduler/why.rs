//! The whole decision about one Pod in words, for `wherry why pod/NAME`.
//!
//! It is the scheduler's own decision made once more, over objects that the caller has read: what
//! it says is what the scheduler would do now, not what it once thought.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;

use super::cluster::Cluster;
use super::decide::View;
use super::need::{Need, is_pending};
use super::preempt::preempt;
use super::score::{Score, scores};
use crate::controllers::pods;

/// What the decision is made over.
#[derive(Default)]
pub struct Situation {
    pub nodes: Vec<Node>,
    pub pods: Vec<Pod>,
    pub namespaces: Vec<Namespace>,
    pub budgets: Vec<PodDisruptionBudget>,
    pub claims: Vec<PersistentVolumeClaim>,
    pub volumes: Vec<PersistentVolume>,
    pub classes: Vec<StorageClass>,
}

/// A page of text: where the Pod is or why it is nowhere, and what each node has to say to it.
pub fn why(situation: &Situation, pod: &Pod) -> String {
    let mut cluster = Cluster::default();
    situation.nodes.iter().for_each(|node| cluster.put_node(node));
    situation.namespaces.iter().for_each(|namespace| cluster.put_namespace(namespace));
    situation.budgets.iter().for_each(|budget| cluster.put_budget(budget));
    cluster.put_volumes(|volumes| {
        situation.claims.iter().for_each(|claim| volumes.put_claim(claim));
        situation.volumes.iter().for_each(|volume| volumes.put_volume(volume));
        situation.classes.iter().for_each(|class| volumes.put_class(class));
    });
    for other in situation.pods.iter().filter(|other| other.metadata.uid != pod.metadata.uid) {
        if !pods::node(other).is_empty() && !pods::is_finished(other) {
            cluster.place(&Need::read(other), pods::node(other), pods::is_deleting(other));
        } else if is_pending(other) {
            // Room is kept for it where others have been told to go.
            let other = Need::read(other);
            let told = other.nominated.as_deref().and_then(|name| cluster.node_index(name));
            if let Some(node) = told {
                cluster.nominate(&other, node);
            }
        }
    }
    let need = Need::read(pod);
    let mut text = headline(pod, &need);
    let verdicts = verdicts(&mut cluster, &need);
    let width = verdicts.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max("NODE".len());
    let _ = writeln!(text, "\n{:width$}  VERDICT", "NODE");
    for (name, verdict) in &verdicts {
        let _ = writeln!(text, "{name:width$}  {verdict}");
    }
    if verdicts.is_empty() {
        let _ = writeln!(text, "(there are no nodes)");
    }
    if is_pending(pod)
        && let Some(plan) = preempt(&mut cluster, &need)
    {
        let victims: Vec<String> =
            plan.victims.iter().map(|one| format!("{}/{}", one.namespace, one.name)).collect();
        let _ = writeln!(
            text,
            "\nRoom could be made on {} by ending Pods of lower priority: {}.",
            plan.node,
            victims.join(", ")
        );
    }
    text
}

fn headline(pod: &Pod, need: &Need) -> String {
    let Need { namespace, name, .. } = need;
    let gates = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_deref()).unwrap_or(&[]);
    if !pods::node(pod).is_empty() {
        return format!("Pod {namespace}/{name} is on node {}.\n", pods::node(pod));
    }
    if !gates.is_empty() {
        let names: Vec<&str> = gates.iter().map(|gate| gate.name.as_str()).collect();
        let names = names.join(", ");
        return format!(
            "Pod {namespace}/{name} is not looked at while it has scheduling gates: {names}.\n"
        );
    }
    if !is_pending(pod) {
        let scheduler = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
        let scheduler = scheduler.unwrap_or("none");
        return format!(
            "Pod {namespace}/{name} is not waiting for this scheduler (its phase is {}, its \
             scheduler {scheduler:?}).\n",
            pods::phase(pod)
        );
    }
    let mut text = match &need.told {
        Some(told) => format!("Pod {namespace}/{name} waits for a node: {told}\n"),
        None => format!("Pod {namespace}/{name} waits for a node.\n"),
    };
    if let Some(node) = &need.nominated {
        let _ = writeln!(text, "Pods of lower priority were ended on {node} to make room for it.");
    }
    text
}

/// What each node says: why not, or how good it would be. The best first.
fn verdicts(cluster: &mut Cluster, need: &Need) -> Vec<(String, String)> {
    cluster.meet(need);
    let nodes = cluster.nodes();
    let present = nodes.iter().enumerate().filter(|(_, node)| node.present);
    let circle = cluster.census().circle(need, nodes);
    let ties = match cluster.ties(need) {
        Ok(ties) => ties,
        Err(why) => {
            return present.map(|(_, node)| (node.name.clone(), format!("no: {why}"))).collect();
        }
    };
    let imports = cluster.imports(need);
    let view = View { cluster, need, circle: circle.as_ref(), ties: &ties, imports: &imports };
    let (mut candidates, mut refusals) = (Vec::new(), Vec::new());
    for (index, node) in present {
        let found: Vec<String> = view.reasons(index).iter().map(ToString::to_string).collect();
        match found.is_empty() {
            true => candidates.push(index),
            false => refusals.push((node.name.clone(), format!("no: {}", found.join(", ")))),
        }
    }
    let (appetite, in_zones) = (cluster.appetite(need), cluster.siblings(need));
    let scores = scores(nodes, &candidates, need, circle.as_ref(), appetite, in_zones);
    let mut ranked: Vec<(i64, String, String)> = candidates
        .iter()
        .zip(scores)
        .map(|(index, score)| (-score.total(), nodes[*index].name.clone(), points(&score)))
        .collect();
    ranked.sort();
    refusals.sort();
    ranked.into_iter().map(|(_, name, points)| (name, points)).chain(refusals).collect()
}

fn points(score: &Score) -> String {
    let Score { free, balance, images, siblings, affinity, taints, company, quiet } = score;
    format!(
        "yes: {} points (free room {free}, balance {balance}, image there {images}, away from its \
         siblings {siblings}, preferred nodes {affinity}, no unwanted taints {taints}, other Pods \
         {company}, quiet neighbours {quiet})",
        score.total()
    )
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodStatus;

    use super::*;
    use crate::controllers::testing::yaml;

    fn situation() -> Situation {
        let node = |name: &str, cpu: &str| -> Node {
            yaml(&format!(
                "metadata: {{name: {name}}}\nstatus:\n  \
                 allocatable: {{cpu: \"{cpu}\", memory: 1Gi, pods: \"10\"}}\n  \
                 conditions: [{{type: Ready, status: \"True\"}}]"
            ))
        };
        let low: Pod = yaml(
            "metadata: {name: low, namespace: d}\nspec: {nodeName: b, priority: 1, containers: \
             [{name: c, image: i, resources: {requests: {cpu: 700m}}}]}",
        );
        Situation {
            nodes: vec![node("a", "100m"), node("b", "1"), node("c", "1")],
            pods: vec![low],
            ..Situation::default()
        }
    }

    fn pod(cpu: &str, more: &str) -> Pod {
        yaml(&format!(
            "metadata: {{name: web, namespace: d}}\nspec: {{{more}containers: \
             [{{name: c, image: i, resources: {{requests: {{cpu: \"{cpu}\"}}}}}}]}}"
        ))
    }

    #[test]
    fn says_what_each_node_says() {
        expect_test::expect![[r#"
            Pod d/web waits for a node.

            NODE  VERDICT
            c     yes: 230 points (free room 80, balance 50, image there 0, away from its siblings 0, preferred nodes 0, no unwanted taints 0, other Pods 0, quiet neighbours 100)
            a     no: Insufficient cpu
            b     no: Insufficient cpu
        "#]]
        .assert_eq(&why(&situation(), &pod("500m", "")));
    }

    #[test]
    fn says_who_could_make_room() {
        let mut situation = situation();
        situation.nodes.pop();
        let text = why(&situation, &pod("500m", "priority: 9, "));
        let last = "Room could be made on b by ending Pods of lower priority: d/low.\n";
        assert!(text.ends_with(last), "{text}");
        // It was made, and is kept.
        let mut told = pod("500m", "priority: 9, ");
        let status = PodStatus { nominated_node_name: Some("b".to_string()), ..Default::default() };
        told.status = Some(status);
        let text = why(&situation, &told);
        let first =
            "Pod d/web waits for a node.\nPods of lower priority were ended on b to make room";
        assert!(text.starts_with(first), "{text}");
        situation.pods = vec![told];
        let mut other = pod("600m", "");
        other.metadata.uid = Some("other".to_string());
        let text = why(&situation, &other);
        assert!(text.contains("\nb     no: Insufficient cpu\n"), "{text}");
        let text = why(&situation, &pod("500m", "nodeName: b, "));
        assert!(text.starts_with("Pod d/web is on node b.\n"), "{text}");
    }
}
