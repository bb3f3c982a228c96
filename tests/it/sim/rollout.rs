//! A second model of the rolling update, written from its rules and not from the controller, and
//! compared with the controller's plan on random states.
//!
//! The rules: new Pods come while all together are fewer than replicas + maxSurge. Old Pods go, one
//! after the other, while what is available stays at replicas - maxUnavailable: first those that do
//! not work, the oldest ReplicaSet first. A step does the one or the other.
//!
//! And without any model of the steps: whatever Pods do, no step breaks the bounds, and when all work
//! in the end the rollout arrives.

use proptest::prelude::*;
use wherry_control_plane::controllers::deployment::{Snapshot, plan};

use super::*;

/// A ReplicaSet: what it is asked for and how much of that works.
#[derive(Clone, Copy, Debug)]
struct Size {
    asked: i64,
    available: i64,
}

#[derive(Clone, Debug)]
struct World {
    replicas: i64,
    surge: i64,
    unavailable: i64,
    new: Size,
    /// The oldest first.
    old: Vec<Size>,
}

/// The next sizes by the rules: the new one, then the old ones.
fn expected(world: &World) -> (i64, Vec<i64>) {
    let mut new = world.new.asked;
    let mut old: Vec<i64> = world.old.iter().map(|size| size.asked).collect();
    let all = |new: i64, old: &[i64]| new + old.iter().sum::<i64>();
    let unavailable = match (world.surge, world.unavailable) {
        (0, 0) => 1,
        (_, unavailable) => unavailable,
    };
    let unavailable = unavailable.min(world.replicas);
    let least = world.replicas - unavailable;
    while new < world.replicas && all(new, &old) < world.replicas + world.surge {
        new += 1;
    }
    if new > world.replicas {
        new = world.replicas;
    }
    if new != world.new.asked {
        return (new, old);
    }
    // Pods that are asked for and do not work yet might never: they are not counted on.
    let hoped_for = new - world.new.available;
    let mut spare = all(new, &old) - least - hoped_for;
    if spare <= 0 {
        return (new, old);
    }
    for (index, size) in world.old.iter().enumerate() {
        let mut broken = size.asked - size.available;
        while broken > 0 && spare > 0 {
            old[index] -= 1;
            broken -= 1;
            spare -= 1;
        }
    }
    let works = world.new.available + world.old.iter().map(|size| size.available).sum::<i64>();
    let mut may_go = works - least;
    for size in &mut old {
        while *size > 0 && may_go > 0 {
            *size -= 1;
            may_go -= 1;
        }
    }
    (new, old)
}

fn set(name: &str, image: &str, size: Size, world: &World, age: i64) -> Arc<ReplicaSet> {
    let template = new_deployment("a", 0, image)["spec"]["template"].clone();
    let created = Timestamp::from_second(1_700_000_000 + age).expect("in range");
    let annotations = json!({
        "deployment.kubernetes.io/desired-replicas": world.replicas.to_string(),
        "deployment.kubernetes.io/max-replicas": (world.replicas + world.surge).to_string(),
        "deployment.kubernetes.io/revision": (age + 1).to_string(),
    });
    let owner = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "name": "a", "uid": "uid-a",
        "controller": true,
    });
    Arc::new(typed(&json!({
        "metadata": {
            "name": name, "namespace": NAMESPACE, "uid": format!("uid-{name}"),
            "labels": {"app": "a"}, "annotations": annotations, "ownerReferences": [owner],
            "creationTimestamp": created,
        },
        "spec": {
            "replicas": size.asked,
            "selector": {"matchLabels": {"app": "a"}},
            "template": template,
        },
        "status": {
            "replicas": size.asked, "readyReplicas": size.available,
            "availableReplicas": size.available,
        },
    })))
}

/// The sizes that the controller's plan leads to.
fn planned(world: &World) -> (i64, Vec<i64>) {
    let mut deployment = new_deployment("a", world.replicas, "hello:new");
    deployment["metadata"] = json!({"name": "a", "namespace": NAMESPACE, "uid": "uid-a"});
    let rolling = json!({"maxSurge": world.surge, "maxUnavailable": world.unavailable});
    deployment["spec"]["strategy"] = json!({"type": "RollingUpdate", "rollingUpdate": rolling});
    let old_name = |index: usize| format!("a-old{index}");
    let mut sets = vec![set("a-new", "hello:new", world.new, world, 100)];
    for (index, size) in world.old.iter().enumerate() {
        let age = i64::try_from(index).expect("few");
        sets.push(set(&old_name(index), &format!("hello:{index}"), *size, world, age));
    }
    let deployment = Arc::new(typed(&deployment));
    let snapshot = Snapshot { deployment, sets, ..Snapshot::default() };
    let now = Timestamp::from_second(1_700_001_000).expect("in range");
    let mut new = world.new.asked;
    let mut old: Vec<i64> = world.old.iter().map(|size| size.asked).collect();
    for write in plan(&snapshot, now).writes {
        let Action::Patch { target, body, .. } = &write.action else { continue };
        let Some(size) = body["spec"]["replicas"].as_i64() else { continue };
        match target.key.name() {
            "a-new" => new = size,
            name => {
                let index = (0..old.len()).find(|index| old_name(*index) == name);
                old[index.expect("one of the old ones")] = size;
            }
        }
    }
    (new, old)
}

fn sizes() -> impl Strategy<Value = Size> {
    (0..12_i64, 0..12_i64).prop_map(|(asked, works)| Size { asked, available: works.min(asked) })
}

fn worlds() -> impl Strategy<Value = World> {
    let limits = (0..12_i64, 0..4_i64, 0..4_i64);
    (limits, sizes(), prop::collection::vec(sizes(), 0..4)).prop_map(|(limits, new, old)| {
        let (replicas, surge, unavailable) = limits;
        World { replicas, surge, unavailable, new, old }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn the_rolling_update_follows_its_rules(world in worlds()) {
        prop_assert_eq!(planned(&world), expected(&world), "{:?}", world);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn rollouts_keep_their_bounds_and_arrive(
        mut world in worlds(),
        luck in prop::collection::vec(0..3_i64, LUCK),
    ) {
        let away = if world.surge + world.unavailable == 0 { 1 } else { world.unavailable };
        let least = world.replicas - away.min(world.replicas);
        for step in 0..STEPS_MAX {
            let (new, old) = planned(&world);
            let was = world.total();
            let worked = world.works();
            world.become_of(new, &old);
            let most = was.max(world.replicas + world.surge);
            prop_assert!(world.total() <= most, "step {}: {:?}", step, world);
            prop_assert!(world.works() >= worked.min(least), "step {}: {:?}", step, world);
            if new == world.replicas && old.iter().all(|size| *size == 0) {
                return Ok(());
            }
            // So many more Pods of each ReplicaSet work; in the end all do.
            let more = luck.get(step).copied().unwrap_or(i64::MAX);
            for size in world.old.iter_mut().chain([&mut world.new]) {
                size.available = size.available.saturating_add(more).min(size.asked);
            }
        }
        prop_assert!(false, "it does not arrive: {:?}", world);
    }
}

/// Steps in which chance decides how many Pods work, and those in which a rollout has to arrive.
const LUCK: usize = 30;
const STEPS_MAX: usize = 150;

impl World {
    fn sizes(&self) -> impl Iterator<Item = &Size> {
        self.old.iter().chain([&self.new])
    }

    fn total(&self) -> i64 {
        self.sizes().map(|size| size.asked).sum()
    }

    fn works(&self) -> i64 {
        self.sizes().map(|size| size.available).sum()
    }

    /// The ReplicaSets get these sizes. Pods that do not work go first.
    fn become_of(&mut self, new: i64, old: &[i64]) {
        let asked = old.iter().copied().chain([new]);
        for (size, asked) in self.old.iter_mut().chain([&mut self.new]).zip(asked) {
            *size = Size { asked, available: size.available.min(asked) };
        }
    }
}
